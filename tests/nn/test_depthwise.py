"""Depthwise convolutions of small maps: results and gradients of nn.Conv2d."""

import shutil

import pytest
import torch
from torch import nn

from src.nn.depthwise import DepthwiseConv2d, speed_up_depthwise
from src.nn.encoder import create_encoder

GEOMETRIES = [
    (2, 5, 1, 2),
    (3, 5, 1, 2),
    (4, 5, 2, 2),
    (2, 3, 1, 1),
    (5, 7, 2, 3),
    (4, 3, 1, 0),
    (1, 3, 1, 1),
]
"""Side of the maps, kernel, stride, padding."""


def make_pair(kernel: int, stride: int, padding: int, channels: int = 6) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)
    fast = nn.Sequential(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False))
    fast[0].load_state_dict(plain.state_dict())
    speed_up_depthwise(fast)
    assert type(fast[0]) is DepthwiseConv2d
    return plain, fast[0]


@pytest.mark.parametrize(("side", "kernel", "stride", "padding"), GEOMETRIES)
def test_gradients_are_those_of_conv2d(side, kernel, stride, padding):
    found = []
    for layer in make_pair(kernel, stride, padding):
        generator = torch.Generator().manual_seed(1)
        maps = torch.randn(3, 6, side, side + 1, generator=generator).requires_grad_()
        convolved = layer(maps)
        convolved.mul(torch.randn(convolved.shape, generator=generator)).sum().backward()
        found.append((convolved, maps.grad, layer.weight.grad))
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected)


def test_large_maps_take_the_gradient_of_torch():
    maps = torch.randn(2, 6, 8, 8)
    _, fast = make_pair(5, 1, 2)
    assert type(fast(maps).grad_fn).__name__ == "ConvolutionBackward0"
    assert type(fast(maps[..., :2, :2]).grad_fn).__name__ == "_DepthwiseBackward"


def test_autocast_computes_in_its_own_precision():
    _, fast = make_pair(3, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(torch.randn(2, 6, 2, 2)).dtype == torch.bfloat16


def test_other_convolutions_stay_as_they_are():
    kept = nn.Sequential(
        nn.Conv2d(6, 6, 3), nn.Conv2d(6, 12, 3, groups=6, bias=False), nn.Conv2d(6, 6, 3, groups=6)
    )
    speed_up_depthwise(kept)
    assert {type(module) for module in kept} == {nn.Conv2d}


def test_an_encoder_learns_by_them():
    kinds = [type(module) for module in create_encoder("test_efficientnet", 1).modules()]
    assert DepthwiseConv2d in kinds


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_gradients_are_the_same():
    _, fast = make_pair(5, 1, 2)
    maps, gradients = torch.randn(4, 6, 2, 2), []
    for run in (fast, torch.compile(fast)):
        fast.zero_grad()
        run(maps).square().sum().backward()
        gradients.append(fast.weight.grad.clone())
    torch.testing.assert_close(*gradients)
