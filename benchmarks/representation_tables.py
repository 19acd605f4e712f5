"""Tables of the representation study, printed from its committed pieces."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from representation_rows import ABLATION, ALL_ROWS, ROWS
from scipy.stats import t as student
from study_table import format_spread

from src.core.errors import UserError
from src.core.log import say
from src.probe.estimates import LEVEL, paired_rounds, percentile_interval

BASES = ("imagenet", "v2")
UNSEEN = ("chaos", "rsna", "totalsegmentator")
"""Patients with painted injuries of whom no encoder has seen an image, unlike those of pre-training."""

PATIENTS = 0
"""Seed of their resamples."""
ROUNDING = 1e-3
"""Of the values of patients in a piece, from which their mean may differ."""

Piece = Mapping[str, Any]


REAL_CT = {
    "placing/standard/cross/features_centred": "placing across patients",
    "probe/organ_auc/liver/chaos": "liver, CHAOS, AUC",
    "probe/organ_auc/liver/totalsegmentator": "liver, TotalSegmentator, AUC",
    "probe/organ_within/totalsegmentator/logistic": "organ, six classes",
    "region_auc/development": "body region, development, AUC",
    "region_auc/test": "body region, test, AUC",
}
SHARES = (("linear", "5"), ("linear", "25"), ("tuned", "10"), ("tuned", "100"))
TASK = {f"task/{kind}/{share}/score": f"{share} %, {kind}" for kind, share in SHARES}
TASK_MAP = {f"task/{kind}/{share}/map": f"{share} %, {kind}" for kind, share in SHARES}


@dataclass(frozen=True)
class Table:
    """Figures side by side."""

    title: str
    figures: Mapping[str, str]
    """names of figures, and their headings"""
    rows: Mapping[str, Any]
    bases: tuple[str, ...] = BASES
    """rows that the others are compared with; none: no differences"""
    is_stepwise: bool = False
    """whether each row is compared with the one above it instead"""

    def pairs(self) -> list[tuple[str, str]]:
        """Rows that are compared, each with its base; of two bases the second with the first alone."""
        if self.is_stepwise:
            return [(row, above) for above, row in pairwise(self.rows)]
        return [
            (row, base)
            for row in self.rows
            for number, base in enumerate(self.bases)
            if row not in self.bases[: number + 1]
        ]


INJURIES = ("laceration_low", "laceration_high", "haematoma", "extravasation", "free_gas")


def injury_figures(kind: str, negatives: str) -> dict[str, str]:
    """Figures of injury_probe.py, by frozen or by tuned features, and their means."""
    shown = {f"injury/{kind}/{target}/{negatives}": target.replace("_", " ") for target in INJURIES}
    means = {
        f"injury/{kind}/mean/{negatives}": "mean",
        f"injury/{kind}/unseen/{negatives}": "mean of 3 unseen patients",
    }
    return {**shown, **means}


STEPS = {heading: (figure,) for figure, heading in REAL_CT.items()} | {
    "injuries, frozen, AUC": tuple(f"injury/frozen/{target}/harmless" for target in INJURIES)
}
"""Headings of the table over steps, and the figures that each is the mean of."""
SUMMARY = {
    "placing/standard/cross/features_centred": "placing across patients",
    "probe/organ_within/totalsegmentator/logistic": "organ, six classes",
    "region_auc/test": "body region, AUC",
    "injury/frozen/mean/harmless": "injuries, frozen, AUC",
    "injury/tuned/mean/harmless": "injuries, fine-tuned, AUC",
    "injury/tuned/unseen/harmless": "the same, 3 unseen patients",
    "task/tuned/100/score": "phantoms, score (lower is better)",
}
"""The figures that answer the title of the study; the other tables have all."""

TABLES = (
    Table("In short", SUMMARY, ROWS, ("imagenet", "imagenet-ct", "plus")),
    Table("Real CT, frozen features", REAL_CT, ROWS),
    Table("Phantoms, the competition's score (lower is better)", TASK, ROWS),
    Table("Phantoms, mAP of the injuries", TASK_MAP, ROWS, bases=()),
    *(
        Table(
            f"Injuries painted on real CT, {title} features, against {shown}: AUC",
            injury_figures(kind, negatives),
            ROWS,
            BASES if negatives == "harmless" else (),
        )
        for kind, title in (("frozen", "frozen"), ("tuned", "fine-tuned"))
        for negatives, shown in (("untouched", "the same tile untouched"), ("harmless", "harmless edits"))
    ),
    Table(
        "From `v2` to `plus`, one change after the other",
        REAL_CT | {"injury/frozen/mean/harmless": "injuries, frozen, AUC"},
        {"imagenet": ROWS["imagenet"]} | ABLATION,
        is_stepwise=True,
    ),
)


def read_pieces(folder: Path) -> dict[tuple[str, int], Piece]:
    """The pieces of a folder by row and seed.

    Raises:
        UserError: there are none.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        piece = json.loads(path.read_text(encoding="utf-8"))
        piece["figures"] |= mean_injuries(piece["figures"])
        found[piece["row"], piece["seed"]] = piece
    if not found:
        raise UserError(f"no pieces in {folder}: run the study first, or give --pieces")
    return found


def mean_injuries(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The mean over all injuries by kind of probe and of negatives: of the patients with organs for all of
    them, and of the `UNSEEN` among these."""
    means = {}
    for kind, negatives in product(("frozen", "tuned"), ("untouched", "harmless")):
        found = [figures.get(f"injury/{kind}/{target}/{negatives}") for target in INJURIES]
        if all(found):
            by_patient = pd.DataFrame([each["by_patient"] for each in found]).mean(skipna=False).dropna()
            unseen = by_patient[by_patient.index.isin(UNSEEN)]
            for name, values in (("mean", by_patient), ("unseen", unseen)):
                mean = {"value": float(values.mean()), "by_patient": values.to_dict()}
                means[f"injury/{kind}/{name}/{negatives}"] = mean
    return means


def show_pieces(folder: Path) -> dict[str, Any]:
    """Print all tables; returns their lines."""
    pieces = read_pieces(folder)
    results = {}
    for table in TABLES:
        rows = [line for name in table.rows if (line := mean_line(pieces, name, table.figures))]
        if not rows:
            continue
        about = "mean ± standard deviation over seeds [95 % interval of one seed]"
        say(f"\n**{table.title}**: {about}\n\n{format_markdown(rows)}")
        compared = (difference_line(pieces, *pair, table.figures) for pair in table.pairs())
        if gaps := [line for line in compared if line]:
            say(f"\nDifferences [paired 95 % interval]\n\n{format_markdown(gaps)}")
        results[table.title] = {"rows": rows, "differences": gaps}
    if steps := [line for name in ALL_ROWS if (line := steps_line(pieces, name))]:
        say(f"\n**Real CT over the steps of pre-training**: mean over seeds\n\n{format_markdown(steps)}")
        results["steps"] = steps
    lines = [cost_line(pieces, name) for name in ALL_ROWS]
    costs = [line for line in lines if line]
    say(f"\nSeconds of a seed, and commands\n\n{format_markdown(costs)}")
    return results | {"costs": costs}


def format_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table as it stands in docs/studies/representation.md."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([row.get(name, "-") for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def of_row(pieces: Mapping[tuple[str, int], Piece], name: str) -> list[Piece]:
    return [piece for (row, _), piece in pieces.items() if row == name]


def mean_line(pieces: Mapping, name: str, figures: Mapping[str, str]) -> dict[str, Any] | None:
    """A row of a table: of each figure the mean over the seeds, their standard deviation, and the ends of a
    seed's interval, averaged over the seeds. None without pieces."""
    mine = of_row(pieces, name)
    if not mine:
        return None
    line = {"encoder": ALL_ROWS[name].title, "seeds": len(mine)}
    for figure, heading in figures.items():
        found = [piece["figures"][figure] for piece in mine if figure in piece["figures"]]
        ends = pd.DataFrame([interval_of(each) for each in found], columns=["low", "high"], dtype=float)
        low, high = ends.mean()
        spread = format_spread(pd.Series([each["value"] for each in found], dtype=float))
        line[heading] = spread + ("" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]")
    return line


def interval_of(estimate: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Ends of an estimate's interval; of a mean over patients without one, by a bootstrap over them."""
    if "low" in estimate:
        return estimate["low"], estimate["high"]
    if not is_mean_over_patients(estimate):
        return None, None
    rounds = paired_rounds(estimate["by_patient"], dict.fromkeys(estimate["by_patient"], 0.0), PATIENTS)
    return (None, None) if rounds is None else percentile_interval(rounds)


def steps_line(pieces: Mapping, name: str) -> dict[str, Any] | None:
    """A row's `STEPS` on real CT after each number of steps that was measured; None without any."""
    mine = [piece for piece in of_row(pieces, name) if "earlier" in piece]
    if not mine:
        return None
    line = {
        "encoder": ALL_ROWS[name].title,
        "steps": " / ".join([*mine[0]["earlier"], str(mine[0]["steps"])]),
    }
    stages = [
        [*piece["earlier"].values(), {name: figure["value"] for name, figure in piece["figures"].items()}]
        for piece in mine
    ]
    for heading, figures in STEPS.items():
        means = [
            np.mean([values[figure] for values in of_seeds for figure in figures])
            for of_seeds in zip(*stages, strict=True)
        ]
        line[heading] = " / ".join(f"{mean:.3f}" for mean in means)
    return line


def difference_line(
    pieces: Mapping, name: str, base: str, figures: Mapping[str, str]
) -> dict[str, Any] | None:
    """Differences of a row to another, of the means over the seeds of both. A seed that one of them lacks is
    left out: it has other draws of labels."""
    seeds = [seed for row, seed in pieces if row == name and (base, seed) in pieces]
    if not seeds:
        return None
    mine, others = ([pieces[row, seed]["figures"] for seed in seeds] for row in (name, base))
    line = {"encoder": ALL_ROWS[name].title, "minus": ALL_ROWS[base].title}
    for figure, heading in figures.items():
        both = [
            (first[figure], second[figure])
            for first, second in zip(mine, others, strict=True)
            if figure in first and figure in second
        ]
        line[heading] = format_difference(both) if both else "-"
    return line


def format_difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """The mean difference of pairs of estimates, one pair for each seed, with its interval.

    The interval of several seeds adds the variance between them to that over patients (or blocks), with the
    degrees of freedom of Welch and Satterthwaite: trainings of a row differ, and three of them tell little
    about how much. With one seed it is over patients alone.
    """
    gaps = np.array([first["value"] - second["value"] for first, second in pairs])
    gap = f"{gaps.mean():+.3f}"
    rounds = [resampled_difference(*pair) for pair in pairs]
    if any(each is None for each in rounds):
        return gap
    if len(pairs) == 1:
        low, high = percentile_interval(rounds[0])
        return gap if low is None else f"{gap} [{low:+.3f}, {high:+.3f}]"
    of_seeds = gaps.var(ddof=1) / len(gaps)
    total = of_seeds + np.nanvar(np.mean(rounds, axis=0))
    freedom = (len(gaps) - 1) * (total / of_seeds) ** 2 if of_seeds else np.inf
    half = student.ppf((1 + LEVEL) / 2, freedom) * total**0.5
    return f"{gap} [{gaps.mean() - half:+.3f}, {gaps.mean() + half:+.3f}]"


def resampled_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> np.ndarray | None:
    """Difference of two estimates in each round: of the same resamples, or of patients if both are means over
    them. None for others, and for few patients."""
    if "resampled" in first and "resampled" in second:
        return np.float64(first["resampled"].split()) - np.float64(second["resampled"].split())
    if is_mean_over_patients(first) and is_mean_over_patients(second):
        return paired_rounds(first["by_patient"], second["by_patient"], PATIENTS)
    return None


def is_mean_over_patients(estimate: Mapping[str, Any]) -> bool:
    by_patient = list((estimate.get("by_patient") or {}).values())
    return bool(by_patient) and abs(np.mean(by_patient) - estimate["value"]) < ROUNDING


def cost_line(pieces: Mapping, name: str) -> dict[str, Any] | None:
    """Command and mean seconds of a row."""
    mine = of_row(pieces, name)
    if not mine:
        return None
    seconds = pd.DataFrame([piece["seconds"] for piece in mine]).mean()
    shown = {f"{what}, s": "-" if pd.isna(value) else f"{value:.0f}" for what, value in seconds.items()}
    return {"encoder": ALL_ROWS[name].title, **shown, "command": f"`{mine[0]['command']}`"}
