"""Counted operations and memory against closed forms, and against measured memory."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2] / "benchmarks")
)  # its processes import from it, too
from cost_2d_vs_3d import build_step, count_crops, load_preset
from counting import count
from harness import peak_bytes


@pytest.mark.parametrize("groups", [1, 4, 24])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_count_convolution_once_forward_and_twice_backward(dimensions, groups):
    kind = nn.Conv2d if dimensions == 2 else nn.Conv3d
    layer = kind(24, 48, 3, stride=2, padding=1, groups=groups, bias=False, device="meta")
    images = torch.empty(5, 24, *(16,) * dimensions, device="meta", requires_grad=True)
    products = 5 * 48 * 8**dimensions * (24 // groups) * 3**dimensions
    forward = count(lambda: layer(images), [images, layer.weight])
    both = count(lambda: layer(images).sum().backward(), [images, layer.weight])
    assert forward.flops == 2 * products
    assert both.flops == 3 * 2 * products


def test_count_first_convolution_has_no_gradient_to_its_input():
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False, device="meta")
    images = torch.empty(2, 3, 10, 10, device="meta")
    products = 2 * 8 * 100 * 3 * 9
    assert count(lambda: layer(images).sum().backward(), []).flops == 2 * 2 * products


def test_count_transposed_convolution():
    layer = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False, device="meta")
    images = torch.empty(2, 6, 10, 10, device="meta", requires_grad=True)
    products = 2 * 6 * 100 * 4 * 4
    assert count(lambda: layer(images).sum().backward(), []).flops == 3 * 2 * products


def test_count_attention_two_products_of_tokens_and_four_projections():
    tokens, width, batch = 50, 32, 3
    layer = nn.MultiheadAttention(width, 4, bias=False, batch_first=True, device="meta")
    x = torch.empty(batch, tokens, width, device="meta", requires_grad=True)
    products = batch * (4 * tokens * width**2 + 2 * tokens**2 * width)
    forward = count(lambda: layer(x, x, x, need_weights=False), [])
    both = count(lambda: layer(x, x, x)[0].sum().backward(), [])  # the form with weights saves them
    assert forward.flops == 2 * products
    assert both.flops == 3 * 2 * products


def test_count_peak_bytes_of_live_tensors():
    x = torch.empty(1000, device="meta")  # 4,000 bytes

    def chain():
        y = x.exp()
        z = y.view(10, 100).exp()  # the view costs nothing
        del y
        z.exp_()  # in place, neither
        return z.exp()  # x, z and this one

    assert count(chain, [x]).peak_bytes == 12_000


def test_count_peak_bytes_of_the_backward_pass():
    x = torch.empty(1000, device="meta", requires_grad=True)

    def kept(depth):
        def run():
            y = x
            for _ in range(depth):
                y = y.exp()  # keeps its result
            y.sum().backward()

        return count(run, [x]).peak_bytes

    assert kept(20) - kept(10) == 10 * 4_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_count_crops_memory_grows_as_measured_memory_does():
    """The growth, for the libraries of a process take some 100 MB besides."""
    options = replace(load_preset("v2", "resnet10t"), slices=8)
    few, many = 2, 14
    counted = [count_crops(options, crops).peak_bytes for crops in (few, many)]
    measured = [peak_bytes(build_step, options, crops) for crops in (few, many)]
    assert measured[1] - measured[0] == pytest.approx(counted[1] - counted[0], rel=0.1)
