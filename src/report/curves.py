"""Curves of a run of pre-training or segmentation: losses, monitors, scores, learning rate.

python -m src.report.curves --run runs/voco/v2
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import atomic_path
from src.core.log import say
from src.voco.monitors import COLLAPSE_STD

PANELS = {
    "losses": ("loss",),
    "right base chosen (share of crops)": ("cross_placing", "intra_placing"),
    "cosine": ("positive_similarity", "negative_similarity"),
    "spread of embeddings (0 is a collapse)": ("embedding_std",),
    "distance of teacher and student (relative)": ("teacher_distance",),
    "shares of pixels": ("agreement", "reliable", "organ"),
    "Dice of the patients left out": ("dice",),
    "HD95 of the patients left out (mm)": ("hd95_mm",),
    "learning rate": ("lr",),
}
"""Title and columns of each panel; `loss` includes columns that begin with `loss_`."""

_COLUMNS = 2
_PANEL_INCHES = (5.5, 3.2)
_FEW_ROWS = 40


@dataclass(frozen=True)
class CurvesOptions:
    """Options of `python -m src.report.curves`."""

    run: Path
    """Run folder of train_voco.py or train_seg.py."""


def main(argv: list[str] | None = None) -> None:
    options = parse_options(CurvesOptions, argv, prog="python -m src.report.curves", description=__doc__)
    say(f"wrote {plot_metrics(options.run)}")


def plot_metrics(run: Path) -> Path:
    """Draw `metrics.csv` of a run of pre-training or segmentation.

    Panels without a measured column are omitted. The chance level is derived from the number of bases in
    `config.yaml`; without that file it is not drawn.

    Returns:
        The path of `curves.png` in the run's folder.

    Raises:
        UserError: `metrics.csv` is missing or has none of the metrics.
    """
    metrics = read_metrics(run / "metrics.csv")
    shown = {title: found for title, names in PANELS.items() if (found := _measured(metrics, names))}
    if not shown:
        raise UserError(f"{run / 'metrics.csv'} holds no figures of train_voco.py or train_seg.py")
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(_PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    for place, (title, columns) in enumerate(shown.items(), start=1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        axes.set(title=title, xlabel="optimiser step")
        axes.grid(alpha=0.3)
        _draw_columns(axes, metrics, columns)
        if "cross_placing" in columns or "intra_placing" in columns:
            axes.set_ylim(0, 1)
            _draw_chance(axes, run / "config.yaml")
        if "embedding_std" in columns:
            axes.axhline(COLLAPSE_STD, color="black", linestyle=":", label=f"warning below {COLLAPSE_STD}")
            axes.set_ylim(bottom=0)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(fontsize="small")
    path = run / "curves.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def read_metrics(path: Path) -> pd.DataFrame:
    """Read the rows of a `metrics.csv` by step: float columns, NaN where a metric was not measured.

    Raises:
        UserError: no such file, or the file has no row.
    """
    if not path.is_file():
        raise UserError(f"no {path}: --run names the folder that the training wrote (its --output)")
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    if table.empty or "step" not in table:
        raise UserError(f"{path} has no rows yet: the first comes after --log-every steps")
    return table.apply(pd.to_numeric, errors="coerce").sort_values("step")


def _measured(metrics: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Return a panel's columns with values, in the panel's order: colours do not depend on the table."""
    parts = [column for column in metrics if column.startswith("loss_")] if "loss" in names else []
    return [column for column in (*names, *parts) if column in metrics and metrics[column].notna().any()]


def _draw_columns(axes: Axes, metrics: pd.DataFrame, columns: list[str]) -> None:
    marker = "." if len(metrics) <= _FEW_ROWS else ""
    for column in columns:
        measured = metrics.dropna(subset=column)  # a row without the metric does not interrupt its line
        width = 2.0 if column == "loss" else 1.2
        (line,) = axes.plot(
            measured["step"], measured[column], marker=marker, linewidth=width, label=_label(column)
        )
        if column == "cross_placing" and {"cross_low", "cross_high"} <= set(metrics):
            edges = measured["step"], measured["cross_low"], measured["cross_high"]
            axes.fill_between(*edges, color=line.get_color(), alpha=0.2, label="its 95 % interval")


def _draw_chance(axes: Axes, config: Path) -> None:
    if config.is_file():
        options = yaml.safe_load(config.read_text(encoding="utf-8"))
        chance = 1 / (options["grid"] ** 2 * options.get("grid_z", 1))
        axes.axhline(chance, color="black", linestyle=":", label=f"chance {chance:.2f}")


def _label(column: str) -> str:
    words = {
        "loss": "total",
        "cross_placing": "among another patient's bases",
        "intra_placing": "among its own bases",
        "agreement": "A and B agree",
        "reliable": "reliable, of unlabelled slices",
        "organ": "taken for an organ, of unlabelled slices",
        "positive_similarity": "overlapping crops",
        "negative_similarity": "crops apart",
    }
    return words.get(column, column.removeprefix("loss_").replace("_", " "))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
