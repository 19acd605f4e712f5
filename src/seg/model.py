"""The pair of sub-networks that segment a slice: trained together, their probabilities averaged."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.core.errors import UserError
from src.core.targets import ORGANS
from src.nn.encoder import fill_network, newer_timm, size_arguments
from src.nn.encoder_weights import timm_backbone
from src.nn.weights_file import read_weights, save_weights, to_tuples

MODEL = "segmenter.safetensors"
"""File name of the trained pair in a run folder."""
SEGMENTER = "a segmentation model of train_seg.py"

CLASSES = len(ORGANS) + 1
"""Number of classes: background, then the organs in the order of their labels."""

EMBEDDING_STRIDE = 4
EMBEDDED = slice(EMBEDDING_STRIDE // 2, None, EMBEDDING_STRIDE)
"""Rows and columns whose pixels have features; features of all pixels would take 16 times the memory."""

_UNET = MappingProxyType({"decoder_channels": (256, 128, 64, 32, 16)})
_CHANNELS = MappingProxyType(
    {
        "unet": _UNET,
        "unetplusplus": _UNET,
        "manet": {**_UNET, "decoder_pab_channels": 64},
        "fpn": {"decoder_pyramid_channels": 256, "decoder_segmentation_channels": 128},
        "deeplabv3plus": {"decoder_channels": 256},
        "upernet": {"decoder_channels": 256},
        "pan": {"decoder_channels": 32},
        "linknet": {},  # uses the encoder's channels
    }
)
"""Default channels of every decoder in the library, by argument name."""

_PAD_TO = 32
"""Input sides are padded to a multiple of this, because encoders halve the image five times."""


@dataclass(frozen=True)
class SegmenterSpec:
    """Everything needed to rebuild a pair and to feed it as in training."""

    backbones: tuple[str, str]
    decoders: tuple[str, str]
    decoder_width: float
    """channels of the decoders, relative to the library's defaults"""
    windows: tuple[str, ...]
    """CT windows of each slice"""
    slices: int
    """number of adjacent slices in the input; its channels are slices x windows, grouped by slice"""
    size: int
    """side in pixels of the slices that it was trained on; larger ones are reduced to it"""
    means: tuple[tuple[float, ...], tuple[float, ...]]
    """means per sub-network and window, of grey levels scaled to 0..1"""
    stds: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def channels(self) -> int:
        return self.slices * len(self.windows)


class SliceOutput(NamedTuple):
    """Output of one sub-network for a batch of slices."""

    logits: Tensor
    """(B, CLASSES, H, W)"""
    embedding: Tensor | None = None
    """(B, E, h, w) features of the pixels [..., EMBEDDED, EMBEDDED], in training with a projection"""


class SubNetwork(nn.Module):
    """Encoder and decoder that map uint8 slices to logits, and to pixel features if `embedding` is above 0.

    Args:
        width: channels of the decoder, relative to the library's defaults.
        mean, std: values per window, of grey levels scaled to 0..1; the same for all slices of an input.
        size: side of the slices in pixels. Some backbones take no other.
    """

    def __init__(
        self,
        backbone: str,
        decoder: str,
        width: float,
        slices: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        size: int,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        self.net = _create_net(backbone, decoder, width, slices * len(mean), size + -size % _PAD_TO)
        head = self.net.segmentation_head
        features = next(layer for layer in head.modules() if isinstance(layer, nn.Conv2d)).in_channels
        self.projection = nn.Conv2d(features, embedding, 1) if embedding else None
        self.slices = slices
        self.register_buffer("mean", torch.empty(0), persistent=False)
        self.register_buffer("std", torch.empty(0), persistent=False)
        self.set_greys(mean, std)

    @property
    def encoder(self) -> nn.Module:
        """The timm network of its encoder."""
        return timm_backbone(self.net.encoder)

    def set_greys(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Normalise grey levels (scaled to 0..1) by `mean` and `std`, both per window."""
        device = self.mean.device
        self.mean, self.std = (
            torch.tensor(each * self.slices, device=device).view(1, -1, 1, 1) for each in (mean, std)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the values of a `SliceOutput`, without an absent one, as CUDA graphs need it.

        Args:
            images: (B, H, W, slices * windows) of any size, uint8 or reduced ones in 0..255.
        """
        height, width = images.shape[1:3]
        pixels = images.permute(0, 3, 1, 2).float().div(255.0)
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        # pad at the right and lower edge, so that pixels keep their coordinates
        pixels = F.pad(pixels, (0, -width % _PAD_TO, 0, -height % _PAD_TO), mode="replicate")
        decoded = self.net.decoder(self.net.encoder(pixels))
        logits = self.net.segmentation_head(decoded)[..., :height, :width]
        if self.projection is None or not self.training:
            return (logits,)
        stride = EMBEDDING_STRIDE * decoded.shape[-1] // pixels.shape[-1]  # decoders end at 1, 1/2 or 1/4
        features = decoded[..., stride // 2 :: stride, stride // 2 :: stride]
        rows, columns = (len(range(side)[EMBEDDED]) for side in (height, width))
        return logits, self.projection(features[..., :rows, :columns])


class SegmenterPair(nn.Module):
    """Sub-networks A and B, of different architectures.

    Args:
        embedding: width of the pixel features for the contrast loss; 0 for none.
    """

    def __init__(self, spec: SegmenterSpec, embedding: int = 0) -> None:
        super().__init__()
        self.size = spec.size
        self.a, self.b = (
            SubNetwork(backbone, decoder, spec.decoder_width, spec.slices, mean, std, spec.size, embedding)
            for backbone, decoder, mean, std in zip(
                spec.backbones, spec.decoders, spec.means, spec.stds, strict=True
            )
        )

    def set_greys(self, spec: SegmenterSpec) -> None:
        """Normalise grey levels by the means and standard deviations of `spec`."""
        for net, mean, std in zip((self.a, self.b), spec.means, spec.stds, strict=True):
            net.set_greys(mean, std)

    def forward(self, images_a: Tensor, images_b: Tensor) -> tuple[SliceOutput, SliceOutput]:
        """Outputs of A and B for uint8 (B, H, W, C); in training each gets its own appearance of a slice."""
        return SliceOutput(*self.a(images_a)), SliceOutput(*self.b(images_b))

    def probabilities(self, images: Tensor) -> Tensor:
        """Mean of the two softmax outputs, (B, CLASSES, h, w); h and w are at most the spec's size."""
        if images.shape[1] > self.size:
            reduced = F.interpolate(images.permute(0, 3, 1, 2).float(), self.size, mode="area")
            images = reduced.permute(0, 2, 3, 1)
        a, b = self(images, images)
        return (a.logits.float().softmax(1) + b.logits.float().softmax(1)) / 2


class Between(NamedTuple):
    """Where M slices lie between those that the networks see."""

    above: Tensor
    """int64 (M,) index of the slice above, or of the slice itself"""
    share_below: Tensor
    """float32 (M,) weight, 0 to 1, of the next one"""


@torch.inference_mode()
def predict_masks(pair: SegmenterPair, images: Tensor, between: Between | None = None) -> Tensor:
    """Predict label maps uint8 (M, H, W) from uint8 slices (N, H, W, slices * windows).

    Args:
        between: slices whose probabilities are interpolated between two of the N; None: the N themselves.

    Raises:
        FloatingPointError: the predicted probabilities are not finite.
    """
    probabilities = pair.probabilities(images)
    if not probabilities.isfinite().all():
        raise FloatingPointError("the segmenter gives probabilities that are not finite")
    side, at_once = images.shape[1], len(images)  # M slices of full size may be too many for the memory
    if between is None:
        return _label(probabilities, side)
    above, share_below = (tensor.to(images.device) for tensor in between)
    masks = [
        _label(torch.lerp(probabilities[one], probabilities[one + 1], share[:, None, None, None]), side)
        for one, share in zip(above.split(at_once), share_below.split(at_once), strict=True)
    ]
    return torch.cat(masks)


def _label(probabilities: Tensor, side: int) -> Tensor:
    """Return the likeliest label of each pixel, uint8 (M, side, side), from (M, CLASSES, h, w)."""
    if probabilities.shape[-1] != side:
        probabilities = F.interpolate(probabilities, side, mode="bilinear", align_corners=False)
    return probabilities.argmax(1).to(torch.uint8)


def check_pair(pair: SegmenterPair, spec: SegmenterSpec, batch: int = 1) -> None:
    """Try both sub-networks on a slice of the spec's size, before a long run.

    Args:
        batch: slices per training step in this process. Some decoders pool to one pixel and normalise it by
            batch statistics, which needs more than one slice.

    Raises:
        UserError: a sub-network fails (some decoders pool deeper than small slices allow).
    """
    # on copies, because running statistics of normalisation layers change with every training slice
    trials = [(copy.deepcopy(pair).eval(), f"take images of {spec.size} px", "prepare larger ones")]
    if batch == 1:
        trials.append((copy.deepcopy(pair).train(), "learn from one slice per step", "raise --batch"))
    images = torch.zeros(1, spec.size, spec.size, spec.channels, dtype=torch.uint8)
    for trial, what, remedy in trials:
        for net, backbone, decoder in zip((trial.a, trial.b), spec.backbones, spec.decoders, strict=True):
            try:
                with torch.inference_mode():
                    net(images)
            except (RuntimeError, ValueError, AssertionError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"decoder {decoder} on {backbone} cannot {what} ({reason}): choose another, or {remedy}"
                ) from None


def save_segmenter(path: str | Path, pair: SegmenterPair, spec: SegmenterSpec, **about: Any) -> None:
    """Write a pair without its projections, with its spec and metadata `about`, atomically by a rename."""
    tensors = {name: tensor for name, tensor in pair.state_dict().items() if ".projection." not in name}
    save_weights(path, tensors, spec=asdict(spec), about=about)


def find_segmenter(path: Path) -> Path:
    """Return the file of a trained pair: `path` itself, or the file in a run folder."""
    return path / MODEL if path.is_dir() else path


def load_segmenter(path: str | Path) -> tuple[SegmenterPair, SegmenterSpec]:
    """Load a trained pair on the CPU in evaluation mode.

    Raises:
        UserError: the file does not exist or contains no pair, or this version of timm builds another.
    """
    spec, weights = read_weights(
        path, SEGMENTER, lambda metadata: SegmenterSpec(**to_tuples(metadata["spec"]))
    )
    pair = SegmenterPair(spec)
    fill_network(pair, weights, path)
    return pair.eval().to(memory_format=torch.channels_last), spec


def _create_net(backbone: str, decoder: str, width: float, channels: int, size: int) -> nn.Module:
    """Create a network of segmentation_models_pytorch with a timm backbone, for images of `size` pixels.

    Raises:
        UserError: timm has no such backbone, or the decoder does not fit it.
    """
    extra = size_arguments(backbone, size)
    try:
        return smp.create_model(
            decoder,
            encoder_name=f"tu-{backbone}",
            encoder_weights=None,
            in_channels=channels,
            classes=CLASSES,
            **{name: _scale(value, width) for name, value in _CHANNELS[decoder].items()},
            **extra,
        )
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"decoder {decoder} on backbone {backbone} cannot be built ({reason}){newer_timm()}"
        ) from None


def _scale(channels: int | tuple[int, ...], width: float) -> int | tuple[int, ...]:
    """Scale channels by `width` to a multiple of 8, at least 8."""
    if isinstance(channels, tuple):
        return tuple(_scale(each, width) for each in channels)
    return channels if width == 1 else max(8, 8 * round(channels * width / 8))
