"""Plots of scored predictions: ROC, precision and recall, calibration, confusion matrices."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve, roc_auc_score
from sklearn.metrics import roc_curve as roc_points

from src.core.files import atomic_path
from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, TARGETS
from src.score.metric import align, any_injury, normalise

_INCHES = 3.4
_BINS = 8


def plot_scores(labels: pd.DataFrame, predictions: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw `roc.png`, `precision_recall.png`, `calibration.png` and `confusion.png`, one panel per target.

    Args:
        labels: `patient_id` and the label columns.
        predictions: predictions of the same patients, one row per patient.

    Returns:
        The paths of the files.
    """
    probabilities = normalise(align(predictions, labels.patient_id))
    drawn: dict[str, Callable[[Axes, pd.DataFrame, pd.DataFrame, str], None]] = {
        "roc": _draw_roc,
        "precision_recall": _draw_precision_recall,
        "calibration": _draw_calibration,
        "confusion": _draw_confusion,
    }
    paths = []
    for name, draw in drawn.items():
        figure = Figure(figsize=(_INCHES * 3, _INCHES * 2), layout="constrained")
        FigureCanvasAgg(figure)
        targets = [target for target in (*TARGETS, "any_injury") if target in TARGETS or name != "confusion"]
        for place, target in enumerate(targets, 1):
            axes = figure.add_subplot(2, 3, place)
            axes.set_title(target.replace("_", " "))
            draw(axes, labels, probabilities, target)
        path = folder / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
        paths.append(path)
    return paths


def _injuries(
    labels: pd.DataFrame, probabilities: pd.DataFrame, target: str
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, truth and ranking of each curve of a panel; curves without both classes are excluded."""
    if target == "any_injury":
        curves = [("any injury", any_injury(labels), any_injury(probabilities))]
    else:
        curves = [
            (column.rsplit("_", 1)[1], labels[column].to_numpy(), probabilities[column].to_numpy())
            for column in TARGETS[target][1:]
        ]
    return [curve for curve in curves if 0 < curve[1].sum() < len(labels)]


def calibration_points(
    labels: pd.DataFrame, probabilities: pd.DataFrame, target: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean prediction and share of injured patients, in bins with equal numbers of patients.

    Under the metric's weights the best prediction is not the probability of a class but proportional to
    probability times weight. The weights are divided out here, so that calibrated predictions are on the
    diagonal, in targets with two and with three classes.

    Args:
        labels: `patient_id` and the label columns.
        probabilities: probabilities of the same patients in the same order, normalised.
        target: one of the five, or `any_injury`, whose odds are divided by its own weight.

    Returns:
        For each injury with patients who have it and who do not: mean probability and share of patients
        who have it, each of shape (bins,).
    """
    points = {}
    for name, truth, predicted in _injuries(labels, _without_weights(probabilities), target):
        if target == "any_injury":
            weighted = any_injury(probabilities)
            predicted = weighted / (weighted + ANY_INJURY_WEIGHT * (1 - weighted))
        share, mean = calibration_curve(truth, predicted, n_bins=_BINS, strategy="quantile")
        points[name] = mean, share
    return points


def _without_weights(probabilities: pd.DataFrame) -> pd.DataFrame:
    shares = {}
    for columns in TARGETS.values():
        values = probabilities[list(columns)] / [CLASS_WEIGHTS[column] for column in columns]
        shares |= dict(values.div(values.sum(axis=1), axis=0).items())
    return probabilities.assign(**shares)


def _draw_roc(axes: Axes, labels: pd.DataFrame, probabilities: pd.DataFrame, target: str) -> None:
    for name, truth, ranking in _injuries(labels, probabilities, target):
        false, true, _ = roc_points(truth, ranking)
        axes.plot(false, true, label=f"{name}, AUC {roc_auc_score(truth, ranking):.3f}")
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    _finish(axes, "healthy patients called injured", "injured patients found")


def _draw_precision_recall(
    axes: Axes, labels: pd.DataFrame, probabilities: pd.DataFrame, target: str
) -> None:
    for name, truth, ranking in _injuries(labels, probabilities, target):
        precision, recall, _ = precision_recall_curve(truth, ranking)
        (line,) = axes.step(
            recall,
            precision,
            where="post",
            label=f"{name}, average {average_precision_score(truth, ranking):.3f}",
        )
        axes.axhline(truth.mean(), color=line.get_color(), linestyle=":", linewidth=1)
    _finish(axes, "recall", "precision (dotted: a guess)")


def _draw_calibration(axes: Axes, labels: pd.DataFrame, probabilities: pd.DataFrame, target: str) -> None:
    axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    for name, (mean, share) in calibration_points(labels, probabilities, target).items():
        axes.plot(mean, share, marker=".", label=name)
    _finish(axes, "predicted, without the metric's weights", "share of patients who have it")


def _draw_confusion(axes: Axes, labels: pd.DataFrame, probabilities: pd.DataFrame, target: str) -> None:
    columns = list(TARGETS[target])
    names = [column.rsplit("_", 1)[1] for column in columns]
    truth, given = (frame[columns].to_numpy().argmax(axis=1) for frame in (labels, probabilities))
    counts = confusion_matrix(truth, given, labels=range(len(columns)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    axes.set(xticks=range(len(names)), yticks=range(len(names)), xlabel="predicted", ylabel="true")
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
