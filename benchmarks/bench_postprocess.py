"""What fitting the post-processing costs and gains on a competition of 3,147 patients.

    python benchmarks/bench_postprocess.py --labels train.csv --json postprocess.json

Predictions are drawn by the noise model of `simulated_predictions.py`, two series for half of the patients.
Each case is fitted across five folds, as score.py --fit does it:

    three models     overconfident, of different skill; one trained without the metric's weights
    one model        overconfident
    exact            one model with the best possible probabilities of each target
    best already     `exact` after a post-processing fitted on all: nothing is left to gain

A gain is the raw score minus the cross-fitted one, over draws of the predictions.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from harness import BenchOptions, run_main
from simulated_predictions import EXACT, NoiseModel, simulate_tables

from src.core.log import format_table, say
from src.data.labels import read_labels
from src.score.metric import score
from src.score.post_objective import Parts
from src.score.postfit import cross_fit, deal_folds, fit_post
from src.score.postprocess import PatientRows, PostProcessing

MODELS = {
    "three models": (NoiseModel(), NoiseModel(model=0.8, knows_weights=False), NoiseModel(series=1.0)),
    "one model": (NoiseModel(),),
    "exact": (EXACT,),
}
BEST = "best already"
DRAWS, FOLDS = 3, 5
TIME_LIMIT, HARM_LIMIT = 60.0, 0.001


@dataclass(frozen=True, kw_only=True)
class PostBenchOptions(BenchOptions):
    labels: Path
    """patient labels in the form of train.csv"""


def main(options: PostBenchOptions) -> dict[str, Any]:
    labels = read_labels(options.labels)
    rows = []
    for seed in range(1 if options.quick else DRAWS):
        for case, predictions in draw_cases(labels, seed).items():
            rows.append({"case": case, "draw": seed, **measure(labels, predictions, seed)})
    table = pd.DataFrame(rows)
    summary = table.groupby("case", sort=False)[["raw", "fitted"]].mean()
    summary["gain"] = table.groupby("case")["gain"].mean()
    summary["least gain"] = table.groupby("case")["gain"].min()
    summary["seconds"] = table.groupby("case")["seconds"].max()
    say(f"{len(labels)} patients, {table.draw.nunique()} draws\n\n{format_table(summary.reset_index())}")
    say(
        f"\nslowest fit {table.seconds.max():.1f} s (limit {TIME_LIMIT:.0f}), least gain "
        f"{table.gain.min():+.4f} (limit -{HARM_LIMIT})"
    )
    return {
        "patients": len(labels),
        "runs": rows,
        "within_time": bool(table.seconds.max() < TIME_LIMIT),
        "does_no_harm": bool(table.gain.min() > -HARM_LIMIT),
    }


def draw_cases(labels: pd.DataFrame, seed: int) -> dict[str, PatientRows]:
    """The predictions of each case."""
    cases = {
        name: PatientRows.read(simulate_tables(labels, models, seed=seed), labels.patient_id)
        for name, models in MODELS.items()
    }
    exact = cases["exact"]
    best = exact.apply(fit_post(labels, exact, Parts(joining=True, calibration=True)))
    return cases | {BEST: PatientRows.read([best], labels.patient_id)}


def measure(labels: pd.DataFrame, rows: PatientRows, seed: int) -> dict[str, float]:
    """Raw and cross-fitted score, and the seconds of the fit."""
    raw = score(labels, rows.apply(PostProcessing.identity(len(rows.mean)))).score
    folds = pd.Series(deal_folds(labels, FOLDS, seed))
    started = time.perf_counter()
    fitted = score(labels, cross_fit(labels, rows, folds).predictions).score
    return {"raw": raw, "fitted": fitted, "gain": raw - fitted, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    run_main(main, PostBenchOptions)
