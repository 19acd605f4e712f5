"""CNN-LSTM: a timm encoder per slice, a sequence head over the slices, one linear layer for five targets."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from src.core.errors import UserError
from src.core.files import atomic_path
from src.core.targets import COLUMNS, GROUPS
from src.nn.augmentation import FLIPS
from src.nn.encoder import create_encoder, encoder_width
from src.nn.sequence import RecurrentHead


@dataclass(frozen=True)
class ClassifierSpec:
    """All that is needed to build a classifier again and to feed it as it was trained."""

    backbone: str
    windows: tuple[str, ...]
    """the CT window of each channel"""
    size: int
    """side of the prepared slices, in pixels"""
    crop: int
    """side of the network's input, cut from the middle"""
    slices: int
    """evenly spaced slices a series"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recurrent: str = "lstm"
    hidden: int = 128
    pooling: str = "max"
    dropout: float = 0.0
    tta: tuple[str, ...] = ("none",)
    """flips that its out-of-fold predictions average, see `FLIPS`"""
    prior: dict[str, float] = field(default_factory=dict)
    """weight-aware prior of the training patients: where training begins, and the answer for a patient
    without a readable series"""


class TraumaClassifier(nn.Module):
    """Slice stacks (B, T, C, H, W), uint8, to logits (B, 13) in the order of the competition's columns."""

    def __init__(self, spec: ClassifierSpec, drop_path_rate: float = 0.0, pretrained: bool = False):
        super().__init__()
        self.encoder = create_encoder(spec.backbone, len(spec.windows), pretrained, drop_path_rate)
        self.head = RecurrentHead(
            encoder_width(self.encoder), spec.hidden, spec.recurrent, spec.pooling, spec.dropout
        )
        self.classifier = nn.Linear(self.head.width, len(COLUMNS))
        if spec.prior:  # begin at the best constant answer rather than at 1/2 and 1/3
            bias = torch.tensor([spec.prior[column] for column in COLUMNS]).log()
            self.classifier.bias.data.copy_(bias)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch, slices = images.shape[:2]
        pixels = images.flatten(0, 1).float().div_(255.0)  # (B * T, C, H, W)
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.encoder(pixels).unflatten(0, (batch, slices))  # (B, T, D)
        pooled, _ = self.head(features)  # (B, 2 * hidden)
        return self.classifier(pooled)


def group_slices() -> dict[str, slice]:
    """Where each target's columns stand among the 13."""
    spans, start = {}, 0
    for group, columns in GROUPS.items():
        spans[group] = slice(start, start + len(columns))
        start += len(columns)
    return spans


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """(B, 13) logits -> (B, 13) probabilities, a softmax within each target."""
    return torch.cat([logits[:, span].float().softmax(dim=1) for span in group_slices().values()], dim=1)


@torch.inference_mode()
def predict_stack(model: nn.Module, images: torch.Tensor, flips: Sequence[str]) -> torch.Tensor:
    """Mean probabilities (B, 13) over flips of the stack: `none`, `h` (left-right), `v` (front-back), `hv`.

    The 13 columns know no sides, so no label is to be swapped.
    """
    views = (images.flip(FLIPS[flip]) for flip in flips)
    return torch.stack([probabilities(model(view)) for view in views]).mean(dim=0)


def save_classifier(path: str | Path, model: TraumaClassifier, spec: ClassifierSpec, **about: Any) -> None:
    """Write the weights, with the spec and what else is told of the run as metadata, by one rename."""
    metadata = {"spec": json.dumps(asdict(spec)), "about": json.dumps(about)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_classifier(path: str | Path) -> tuple[TraumaClassifier, ClassifierSpec]:
    """Rebuild a trained classifier on the CPU, in evaluation mode.

    Raises:
        UserError: the file is not a classifier of this kit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a fold model ({error})") from None
    if "spec" not in metadata:
        raise UserError(f"{path} is not a fold model of train_cls.py")
    values = json.loads(metadata["spec"])
    spec = ClassifierSpec(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )
    model = TraumaClassifier(spec)
    model.load_state_dict(weights)
    return model.eval().to(memory_format=torch.channels_last), spec
