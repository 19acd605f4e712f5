"""Encoders of volumes: MONAI's SwinUNETR encoder under its own names, and a light CNN."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from monai.networks.nets import SwinUNETR

from src.core.errors import UserError
from src.nn.encoder import encoder_width
from src.nn.encoder3d import VOLUME_BACKBONES, SwinEncoder, create_volume_encoder
from src.nn.encoder_weights import load_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def swin():
    """A quarter as wide as the smallest published one."""
    torch.manual_seed(0)
    return SwinEncoder(1, features=12)


def test_swin_encoder_trains_all_of_its_parts(swin):
    """Parts without a gradient would stop a run on several processes."""
    features = swin.train()(torch.randn(1, 1, 64, 32, 32))
    assert features.shape == (1, 288) and encoder_width(swin) == 288
    features.square().sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in swin.parameters())


def test_swin_encoder_equals_that_of_monai(swin):
    """The same maps, pooled: what a whole SwinUNETR computes on the way, from the same weights."""
    network = SwinUNETR(1, 2, feature_size=12, use_v2=True).eval()
    missing, unexpected = network.load_state_dict(swin.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("decoder", "out.")) for name in missing)
    maps = []
    for part in (network.encoder1, network.encoder2, network.encoder3, network.encoder4, network.encoder10):
        part.register_forward_hook(lambda module, inputs, output: maps.append(output.mean(dim=(2, 3, 4))))
    volumes = torch.randn(1, 1, 64, 32, 32)
    with torch.inference_mode():
        network(volumes)
        torch.testing.assert_close(swin.eval()(volumes), torch.cat(maps, dim=1), rtol=1e-4, atol=1e-5)


def test_swin_unetr_b_has_the_published_size():
    """Model B of large-scale VoCo has 53 million parameters and 1152 features."""
    encoder = create_volume_encoder("swin_unetr_b", 1)
    assert round(sum(value.numel() for value in encoder.parameters()) / 1e6) == 53
    assert encoder_width(encoder) == 1152


def test_swin_unetr_l_is_twice_as_wide():
    encoder = create_volume_encoder("swin_unetr_l", 1).to("meta")  # shapes alone
    assert encoder_width(encoder) == 2304
    assert encoder(torch.empty(2, 1, 64, 64, 64, device="meta")).shape == (2, 2304)


@pytest.mark.parametrize("sides", [(64, 64, 48), (16, 64, 64), (32, 32, 32)])
def test_swin_encoder_refuses_sides_that_it_cannot_halve(swin, sides):
    with pytest.raises(UserError, match=f"not {' x '.join(map(str, sides))}"):
        swin(torch.zeros(1, 1, *sides))


@pytest.mark.parametrize("sides", [(16, 32, 32), (7, 40, 24)])
def test_resnet10_3d_takes_any_sides(sides):
    encoder = create_volume_encoder("resnet10_3d", 2)
    features = encoder(torch.randn(2, 2, *sides))
    assert features.shape == (2, encoder_width(encoder))
    features.sum().backward()
    assert all(value.grad is not None for value in encoder.parameters())
    assert sum(value.numel() for value in encoder.parameters()) < 1e6


@pytest.mark.parametrize(
    ("build", "adapted"), [(partial(SwinEncoder, features=12), 3), (VOLUME_BACKBONES["resnet10_3d"], 1)]
)
def test_load_encoder_adapts_3d_weights_of_one_channel_to_three(build, adapted, tmp_path):
    torch.manual_seed(0)
    one, three = build(1).eval(), build(3).eval()
    torch.save(one.state_dict(), tmp_path / "one.pth")
    report = load_encoder(three, tmp_path / "one.pth")
    assert not report.missing and not report.unused and len(report.adapted) == adapted
    volumes = torch.randn(1, 1, 64, 32, 32)
    with torch.inference_mode():
        repeated = three(volumes.expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(repeated, one(volumes), rtol=1e-3, atol=1e-4)


def test_load_encoder_refuses_a_swin_of_another_width(swin, tmp_path):
    torch.save(swin.state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match="was it trained with another --backbone"):
        load_encoder(SwinEncoder(1, features=24), tmp_path / "narrow.pth")


def test_create_volume_encoder_refuses_unknown_names():
    with pytest.raises(UserError, match="no 3D backbone 'swin_unetr_x': there are swin_unetr_b, "):
        create_volume_encoder("swin_unetr_x", 1)


def test_volume_backbones_are_known_without_monai():
    """Its import takes seconds, which 2D runs would pay for nothing."""
    code = "import sys, src.nn.encoder3d, src.voco.model; sys.exit('monai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert "swin_unetr_b" in VOLUME_BACKBONES
