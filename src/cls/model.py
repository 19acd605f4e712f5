"""CNN-LSTM: a timm encoder per slice, a sequence head over slices, linear layers for stack and slices."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.cls.fold_models import FOLD_MODEL
from src.cls.views import StackView
from src.core.targets import CLASS_WEIGHTS, TARGETS
from src.nn.augmentation import FLIPS
from src.nn.encoder import create_encoder, encoder_width, fill_network
from src.nn.micro_batch import encode_in_parts
from src.nn.organ_decoder import OrganDecoder
from src.nn.sequence import SequenceHead
from src.nn.weights_file import read_description, read_weights, save_weights, to_tuples

_TRAINING_ONLY = "decoder."
"""Prefix of weights that are needed in training only."""


@dataclass(frozen=True)
class ClassifierSpec:
    """Arguments of a classifier and of its input, saved with its weights."""

    backbone: str
    view: StackView
    mean: tuple[float, ...]
    """mean per window, of grey levels scaled to 0..1"""
    std: tuple[float, ...]
    targets: tuple[str, ...] = tuple(TARGETS)
    """predicted targets, a subset of `TARGETS`"""
    sequence: str = "lstm"
    hidden: int = 128
    pooling: str = "max"
    dropout: float = 0.0
    reweigh: bool = False
    """whether to multiply probabilities by the metric's class weights because the loss did not use them"""
    predicts_slices: bool = False
    """whether the model has a head for the injuries of single slices"""
    flips: tuple[str, ...] = ("none",)
    """names in `FLIPS` that are averaged in its out-of-fold predictions"""
    offsets: tuple[float, ...] = (0.5,)
    """offsets of the slices, averaged likewise"""
    prior: dict[str, float] = field(default_factory=dict)
    """weight-aware prior of the labelled patients of the other folds: initial output in training, and
    prediction for a patient without a readable series"""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of its targets, in order."""
        return tuple(column for target in self.targets for column in TARGETS[target])

    @property
    def injuries(self) -> tuple[str, ...]:
        """Injuries of its targets, in order."""
        return tuple(column for target in self.targets for column in TARGETS[target][1:])


class ClassifierOutput(NamedTuple):
    """Model output for a batch of stacks."""

    logits: Tensor
    """(B, columns of its targets)"""
    slice_logits: Tensor | None
    """(B, T, injuries of its targets) for each slice, if the network has a slice head"""
    weights: Tensor
    """(B, T) weight of each slice in the pooling"""
    slice_features: Tensor
    """(B, T, W) features before pooling"""
    organ_logits: Tensor | None = None
    """(decoded slices, organ groups + 1, H, W), while the decoder is trained"""


class TraumaClassifier(nn.Module):
    """Maps slice stacks (B, T, C, H, W), uint8, to logits in the order of the spec's columns.

    Args:
        drop_path_rate: stochastic depth of the encoder.
        with_decoder: add a decoder on the encoder's feature maps, which segments organs in training.
    """

    def __init__(
        self,
        spec: ClassifierSpec,
        drop_path_rate: float = 0.0,
        with_decoder: bool = False,
    ) -> None:
        super().__init__()
        view = spec.view
        self.encoder = create_encoder(spec.backbone, view.channels, view.crop, drop_path_rate)
        self.head = SequenceHead(
            encoder_width(self.encoder), spec.hidden, spec.sequence, spec.pooling, spec.dropout
        )
        self.classifier = nn.Linear(self.head.width, len(spec.columns))
        self.slice_classifier = (
            nn.Linear(self.head.width, len(spec.injuries)) if spec.predicts_slices else None
        )
        self.decoder = OrganDecoder(self.encoder, view.channels, view.crop) if with_decoder else None
        if spec.prior:  # start at the best constant prediction rather than at 1/2 and 1/3
            bias = torch.tensor([spec.prior[column] for column in spec.columns]).log()
            self.classifier.bias.data.copy_(bias)
        if self.slice_classifier is not None:
            nn.init.constant_(self.slice_classifier.bias, -2.0)  # most slices show no injury
        grey = view.neighbours
        mean, std = (
            torch.tensor(values * grey + (other,) * view.mask_channels).view(1, -1, 1, 1)
            for values, other in ((spec.mean, 0.0), (spec.std, 1.0))
        )
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(
        self,
        images: Tensor,
        padding: Tensor | None = None,
        decoded: Tensor | None = None,
        slices_at_once: int | None = None,
    ) -> ClassifierOutput:
        """Compute the output for a batch of stacks.

        Args:
            images: uint8 (B, T, C, H, W), or float in 0..255 if stacks are mixed.
            padding: bool (B, T).
            decoded: increasing indices into B * T of the slices that the decoder segments, on the CPU.
            slices_at_once: slices per forward pass of the encoder, default all; fewer need less memory, and
                are computed twice in training.
        """
        batch, slices = images.shape[:2]
        flat, organ_logits = images.flatten(0, 1), None  # (B * T, C, H, W)
        if decoded is not None and self.decoder is not None:
            parts = (self.encoder, self.normalise, flat, decoded, slices_at_once or 0)
            features, organ_logits = self.decoder.segment(*parts)
        else:
            features = encode_in_parts(self._encode, flat, slices_at_once or 0, self.encoder)
        summary = self.head(features.unflatten(0, (batch, slices)), padding)
        return ClassifierOutput(
            self.classifier(summary.pooled),
            self.slice_classifier(summary.slices) if self.slice_classifier is not None else None,
            summary.weights,
            summary.slices,
            organ_logits,
        )

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Convert grey levels (N, C, H, W) in 0..255 to the encoder's input."""
        pixels = images.float().div(255.0)
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def target_spans(targets: Sequence[str] = tuple(TARGETS)) -> dict[str, slice]:
    """Return the position of each target's columns among those of `targets`."""
    spans, start = {}, 0
    for target in targets:
        spans[target] = slice(start, start + len(TARGETS[target]))
        start += len(TARGETS[target])
    return spans


def probabilities(logits: Tensor, targets: Sequence[str] = tuple(TARGETS)) -> Tensor:
    """Convert logits (..., columns) to probabilities by a softmax within each target."""
    parts = [logits[..., span].float().softmax(dim=-1) for span in target_spans(targets).values()]
    return torch.cat(parts, dim=-1)


@torch.inference_mode()
def predict_stack(
    model: nn.Module,
    spec: ClassifierSpec,
    images: Tensor,
    padding: Tensor,
    flips: Sequence[str],
    slices_at_once: int | None = None,
) -> Tensor:
    """Mean probabilities (B, columns) over flips of the stack: none, h (left-right), v (front-back), hv.

    Columns and organ groups have no left and right, so a flip does not exchange any.
    """
    predicted = []
    for flip in flips:
        output = model(
            images.flip(FLIPS[flip]),
            padding if spec.view.is_padded else None,
            slices_at_once=slices_at_once,
        )
        predicted.append(probabilities(output.logits + metric_shift(spec).to(images.device), spec.targets))
    return torch.stack(predicted).mean(dim=0)


def metric_shift(spec: ClassifierSpec) -> Tensor:
    """(columns,) to add to the logits: log class weights for a model that was trained without them."""
    weights = torch.tensor([CLASS_WEIGHTS[column] for column in spec.columns])
    return weights.log() if spec.reweigh else torch.zeros(len(spec.columns))


def save_classifier(path: str | Path, model: TraumaClassifier, spec: ClassifierSpec, **about: Any) -> None:
    """Write the weights with the spec and the run's metadata `about`, atomically by a rename."""
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_TRAINING_ONLY)
    }
    save_weights(path, tensors, spec=asdict(spec), about=about)


def read_spec(path: str | Path) -> ClassifierSpec:
    """Read the spec of a saved classifier. Errors as in `load_classifier`."""
    return read_description(path, FOLD_MODEL, _parse_spec)


def load_classifier(path: str | Path) -> tuple[TraumaClassifier, ClassifierSpec]:
    """Load a trained classifier on the CPU in evaluation mode.

    Raises:
        UserError: the file is not a classifier of this kit, or this version of timm builds another.
    """
    spec, weights = read_weights(path, FOLD_MODEL, _parse_spec)
    model = TraumaClassifier(spec)
    fill_network(model, weights, path)
    return model.eval().to(memory_format=torch.channels_last), spec


def _parse_spec(metadata: dict[str, Any]) -> ClassifierSpec:
    values = to_tuples(metadata["spec"])
    return ClassifierSpec(**{**values, "view": StackView(**values["view"])})
