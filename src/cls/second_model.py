"""Network of the second level, and the file that stores those of a fold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from src.cls.model import probabilities
from src.cls.second_features import SliceFeatures, ViewFeatures
from src.core.targets import COLUMNS
from src.nn.sequence import SequenceHead
from src.nn.weights_file import read_weights, save_weights, to_tuples


@dataclass(frozen=True)
class SecondSpec:
    """Arguments of a second level, saved with its weights."""

    features: tuple[int, ...]
    """F, number of features per slice, of each view of the first level"""
    sequence: str = "gru"
    hidden: int = 32
    pooling: str = "attention"
    dropout: float = 0.3


class ViewHead(nn.Module):
    """Maps the slice features of one view, normalised, to a vector per series."""

    def __init__(self, features: int, spec: SecondSpec) -> None:
        super().__init__()
        self.head = SequenceHead(
            features, spec.hidden, spec.sequence, spec.pooling, spec.dropout, normalise=False
        )
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def scale_to(self, view: ViewFeatures) -> None:
        """Set mean and standard deviation of each feature from slices that are not padding."""
        slices = view.features[~view.padding]
        self.mean.copy_(slices.mean(dim=0))
        self.std.copy_(slices.std(dim=0).clamp(min=1e-3))

    def forward(self, view: ViewFeatures) -> Tensor:
        """Return (B, W)."""
        return self.head((view.features - self.mean) / self.std, view.padding).pooled


class SecondLevel(nn.Module):
    """Maps the slice features of each view and the first level's probabilities to logits (B, 13).

    The logarithm of the probabilities is added to the network's output, which starts at 0.
    """

    def __init__(self, spec: SecondSpec) -> None:
        super().__init__()
        self.heads = nn.ModuleList(ViewHead(features, spec) for features in spec.features)
        self.classifier = nn.Linear(sum(each.head.width for each in self.heads), len(COLUMNS))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def scale_to(self, views: Sequence[ViewFeatures]) -> None:
        """Set mean and standard deviation of each feature of each view."""
        for head, view in zip(self.heads, views, strict=True):
            head.scale_to(view)

    def forward(self, views: Sequence[ViewFeatures], base: Tensor) -> Tensor:
        """Return logits (B, 13) for the views' features of B series and probabilities (B, 13)."""
        pooled = [head(view) for head, view in zip(self.heads, views, strict=True)]
        return base.clamp(min=1e-6).log() + self.classifier(torch.cat(pooled, dim=1))


@torch.inference_mode()
def predict_features(model: SecondLevel, given: SliceFeatures) -> Tensor:
    """Return probabilities (N, 13)."""
    return probabilities(model(given.views, given.base))


def save_second_level(path: Path, models: Sequence[SecondLevel], spec: SecondSpec) -> None:
    """Write the models of a fold, which are averaged, atomically by a rename."""
    save_weights(path, nn.ModuleList(models).state_dict(), spec=asdict(spec))


def load_second_level(path: Path) -> list[SecondLevel]:
    """Load the models of a fold in evaluation mode.

    Raises:
        UserError: the file is not a second level of this kit.
    """
    spec, tensors = read_weights(
        path, "a second level of this kit", lambda metadata: SecondSpec(**to_tuples(metadata["spec"]))
    )
    count = 1 + max(int(name.partition(".")[0]) for name in tensors)
    models = nn.ModuleList(SecondLevel(spec) for _ in range(count))
    models.load_state_dict(tensors)
    return list(models.eval())
