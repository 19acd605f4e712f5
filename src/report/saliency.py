"""Saliency of a fold model: integrated gradients of a column's log-odds, by slice and position.

    python -m src.report.saliency --model runs/cls/plus/fold0/model.safetensors --data data/prepared \\
        --series 21057 --column liver_high --output saliency.png

Red raises the probability of the column, blue lowers it, compared with a stack whose feature maps are
replaced by their mean. The sum of all contributions is the difference between both log-odds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from src.cls.dataset import StackBatch, as_sample
from src.cls.model import ClassifierSpec, TraumaClassifier, load_classifier, metric_shift
from src.cls.stacks import StackReader, crop_centre, open_organs
from src.core.config import check_range, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import atomic_path
from src.core.log import say
from src.core.targets import TARGETS
from src.data.prepared import PreparedDataset

_INCHES = 2.4


@dataclass(frozen=True)
class SaliencyOptions:
    """Options of `python -m src.report.saliency`."""

    model: Path
    """fold<k>/model.safetensors in a run folder of train_cls.py."""

    data: Path
    """Prepared data set."""

    series: str
    """series_id of the series to explain."""

    column: str
    """Column whose probability is explained, such as liver_high."""

    output: Path
    """PNG file to write."""

    slices: int = 6
    """Number of slices to draw, those with the largest contributions."""

    steps: int = 64
    """Number of steps of the integral."""

    def __post_init__(self) -> None:
        check_range(self, "slices", "steps", at_least=1)
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"option --output must end in .png, got {self.output}")


class Saliency(NamedTuple):
    """Contribution of each position of a stack to the log-odds of a column."""

    parts: Tensor
    """(T, h, w) at the resolution of the encoder's last feature maps"""
    log_odds: float
    """log odds of the stack"""
    plain: float
    """log-odds of the same stack with mean feature maps; `log_odds` is this plus the sum of `parts`"""


def main(argv: list[str] | None = None) -> None:
    options = parse_options(SaliencyOptions, argv, prog="python -m src.report.saliency", description=__doc__)
    model, spec = load_classifier(options.model)
    stack = read_stack(options, spec)
    saliency = explain(model, spec, stack, options.column, options.steps)
    order = saliency.parts.abs().sum(dim=(1, 2)).argsort(descending=True)
    shown = sorted(order[: options.slices].tolist())
    with atomic_path(options.output) as temporary:
        draw(saliency, show_slices(stack, spec), shown, options.column).savefig(temporary, dpi=110)
    probability = 1 / (1 + np.exp(-saliency.log_odds))
    gap = saliency.log_odds - saliency.plain
    say(
        f"{options.column} of series {options.series}: probability {probability:.3f}; log-odds "
        f"{saliency.log_odds:+.2f}, {gap:+.2f} against a uniform series; sum of the parts "
        f"{saliency.parts.sum().item():+.2f}"
    )
    say(f"wrote {options.output}")


def read_stack(options: SaliencyOptions, spec: ClassifierSpec) -> StackBatch:
    """Read the model's input for the series, at the middle offset.

    Raises:
        UserError: no such series, or a data set that does not match the model.
    """
    dataset = PreparedDataset.open(options.data)
    found = dataset.series[dataset.series.series_id == options.series]
    if found.empty:
        raise UserError(f"{options.data} has no usable series {options.series}")
    view = spec.view
    organs = open_organs(dataset, [view], found)
    offset = min(spec.offsets, key=lambda offset: abs(offset - 0.5))
    key = (found.patient_id.iloc[0], options.series)
    return as_sample(crop_centre(StackReader(dataset, organs).read(key, view, offset), view), view)


def explain(
    model: TraumaClassifier, spec: ClassifierSpec, stack: StackBatch, column: str, steps: int = 64
) -> Saliency:
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) over the encoder's last feature maps.

    The path starts from the mean features of the stack at every position: features are normalised slice by
    slice, so that a path from zero would carry no information.

    Args:
        model: model in evaluation mode, on the CPU.
        steps: number of steps of the integral, at the midpoints of equal parts.

    Raises:
        UserError: the model does not predict the column, or its encoder has no feature maps.
    """
    if column not in spec.columns:
        raise UserError(f"the model predicts {', '.join(spec.columns)}, not {column} (--column)")
    padding = stack.padding if spec.view.is_padded else torch.zeros_like(stack.padding)
    with torch.no_grad():
        maps = model.encoder.forward_features(model.normalise(stack.images))  # (T, C, h, w)
    if maps.ndim != 4 or getattr(model.encoder, "output_fmt", "NCHW") != "NCHW":
        raise UserError(f"{spec.backbone} has no feature maps of channels: saliency needs a CNN")
    mean = maps[~padding].mean(dim=(0, 2, 3), keepdim=True)
    difference = maps - mean
    total = torch.zeros_like(maps)
    for step in range(steps):
        place = (mean + (step + 0.5) / steps * difference).requires_grad_()
        total += torch.autograd.grad(_log_odds(model, spec, place, padding, column), place)[0]
    parts = (difference * total / steps).sum(dim=1)
    with torch.no_grad():
        ends = [_log_odds(model, spec, each, padding, column).item() for each in (maps, mean.expand_as(maps))]
    return Saliency(parts.masked_fill(padding[:, None, None], 0.0), *ends)


def _log_odds(
    model: TraumaClassifier, spec: ClassifierSpec, maps: Tensor, padding: Tensor, column: str
) -> Tensor:
    """Log-odds, (), of a column within its target, from the encoder's feature maps (T, C, h, w)."""
    features = model.encoder.forward_head(maps)[None]
    pooled = model.head(features, padding[None] if spec.view.is_padded else None).pooled
    logits = (model.classifier(pooled)[0] + metric_shift(spec)).double()
    columns = next(names for names in TARGETS.values() if column in names)
    others = [spec.columns.index(name) for name in columns if name != column]
    return logits[spec.columns.index(column)] - logits[others].logsumexp(dim=0)


def show_slices(stack: StackBatch, spec: ClassifierSpec) -> np.ndarray:
    """Return uint8 (T, H, W): the first window of each slice, without its neighbours and masks."""
    windows = len(spec.view.windows)
    return stack.images[:, spec.view.neighbours // 2 * windows].numpy()


def draw(saliency: Saliency, slices: np.ndarray, shown: list[int], column: str) -> Figure:
    """Draw the slices `shown` with their contributions in colour, above the contribution of every slice.

    Args:
        slices: uint8 (T, H, W).
    """
    enlarged = interpolate(saliency.parts[:, None], slices.shape[1:], mode="bilinear", antialias=False)
    limit = max(saliency.parts.abs().max().item(), 1e-12)
    figure = Figure(figsize=(_INCHES * max(len(shown), 2), 2 * _INCHES), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(shown), height_ratios=(3, 2))
    for place, number in enumerate(shown):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(slices[number], cmap="gray", vmin=0, vmax=255)
        heat = enlarged[number, 0].numpy() / limit
        axes.imshow(heat, cmap="bwr", vmin=-1, vmax=1, alpha=0.6 * np.abs(heat).clip(0, 1) ** 0.5)
        axes.set_title(f"slice {number + 1} of {len(slices)}", fontsize=9)
        axes.set_axis_off()
    axes = figure.add_subplot(grid[1, :])
    sums = saliency.parts.sum(dim=(1, 2)).numpy()
    axes.bar(np.arange(1, len(sums) + 1), sums, color=np.where(sums > 0, "tab:red", "tab:blue"))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("slice of the stack, head to feet")
    axes.set_ylabel(f"log-odds of {column}")
    return figure


if __name__ == "__main__":
    with exit_on_user_error():
        main()
