"""The report of `scoring` as text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from src.core.log import format_table
from src.score.classes import MEASURES
from src.score.scoring import PRIORS


def format_report(report: dict[str, Any]) -> str:
    """Format losses, AUC and classes, and series, tables and the fit if the report has them."""
    blocks = [_format_losses(report), _format_auc(report["auc"]), _format_classes(report["classes"])]
    if report.get("series"):
        rows = [_row("series", name, group) for name, group in report["series"].items()]
        blocks.append(f"Patients by their series\n{format_table(rows)}")
    if "tables" in report:
        blocks.append(_format_tables(report["tables"]))
    if "post" in report:
        blocks.append(_format_fit(report))
    return "\n\n".join(blocks)


def _format_losses(report: dict[str, Any]) -> str:
    rows = [_row("", f"fold {fold['fold']}", fold) for fold in report["folds"]]
    rows.append(_row("", "overall", report))
    lines = [f"score {_format_interval(report['interval'], '.4f')}"]
    for key, (_, difference) in PRIORS.items():
        if key in report:
            name = {"prior": "weight-aware prior", "raised_prior": "raised prior"}[key]
            rows.append(_row("", name, {"patients": report["patients"], **report[key]}))
            change = report["score"] / report[key]["score"] - 1
            interval = _format_interval(report[difference], "+.4f")
            lines.append(f"difference to the {name} {interval}, {change:+.1%}")
    return "\n".join([format_table(rows), "", *lines])


def _format_auc(auc: dict[str, Any]) -> str:
    rows = [{"injury": injury, **values} for injury, values in auc.items()]
    return f"AUC of each grade against healthy\n{format_table(pd.DataFrame(rows))}"


def _format_classes(classes: dict[str, Any]) -> str:
    rows = [{"class": name, **values} for name, values in classes["per_class"].items()]
    for name, key in (("mean of all", "all"), ("mean of injuries", "injuries")):
        means = dict(zip(MEASURES, classes[key].values(), strict=True))
        rows.append({"class": name, "positives": "-", "predicted": "-", **means})
    lines = ["Each class against the rest of its target (the mean average precision is the mAP)"]
    lines.append(format_table(rows))
    if classes["left_out"]:
        lines.append(f"left out, as no patient or every patient has it: {', '.join(classes['left_out'])}")
    return "\n".join(lines)


def _format_tables(tables: list[dict[str, Any]]) -> str:
    rows = []
    for table in tables:
        row = {"run": table["name"], **table["losses"], "score": table["score"], "minus the first": "-"}
        if change := table.get("difference"):
            interval = f"({change['low']:+.4f} to {change['high']:+.4f})"
            row["minus the first"] = f"{change['observed']:+.4f} {interval}"
        rows.append(row)
    return f"Each run alone\n{format_table(rows)}"


def _format_fit(report: dict[str, Any]) -> str:
    """Format losses before and after, the interval of the gain, and parameters with ranges over folds."""
    losses = [
        {"": "raw", **report["losses"], "score": report["score"]},
        {"": "cross-fitted", **report["fitted_losses"], "score": report["fitted_score"]},
    ]
    post, by_fold = report["post"], report["post"]["by_fold"].values()
    numbers = []
    for key in ("weights", "series_max", "any_injury", "temperature", "multipliers"):
        for part, value in _parts(post[key], post["tables"]):
            over_folds = [dict(_parts(fold[key], post["tables"]))[part] for fold in by_fold]
            row = {"post-processing": f"{key} {part}".strip(), "all folds": value}
            numbers.append(row | {"least of a fold": min(over_folds), "most": max(over_folds)})
    title = "Post-processing, every fold by a fit to the others"
    if report["fitted_folds"] == "by seed":
        title += f" ({len(by_fold)} folds made from a seed; --folds gives those of the models)"
    lines = [title, format_table(losses), ""]
    lines.append(f"change {_format_interval(report['fitted_difference'], '+.4f')}")
    return "\n".join([*lines, "", format_table(pd.DataFrame(numbers))])


def _row(header: str, name: str, scored: dict[str, Any]) -> dict[str, Any]:
    return {header: name, "patients": scored["patients"], **scored["losses"], "score": scored["score"]}


def _parts(value: Any, tables: Sequence[str]) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(zip(tables, value, strict=True)) if isinstance(value, list | tuple) else [("", value)]


def _format_interval(interval: dict[str, float], form: str) -> str:
    low, high = format(interval["low"], form), format(interval["high"], form)
    return f"{format(interval['observed'], form)} ({interval['level']:.0%} interval {low} to {high})"
