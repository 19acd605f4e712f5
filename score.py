"""Score predictions by the competition's metric: per fold, overall, and against priors without any image.

    python score.py --oof runs/cls/demo/oof.csv --labels train.csv --folds folds/rsna2023_5fold.csv
    python score.py --oof A/oof_series.csv B/oof_series.csv --labels train.csv --json score.json
    python score.py --submission submission.csv --labels test_labels.csv --prior-labels train.csv

Rows of one patient (several series) are averaged, then tables (several models) are averaged. The priors are
fitted on the other folds of --labels, or for a submission on --prior-labels. Lower is better.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import write_json
from src.core.log import say
from src.data.folds import read_folds
from src.data.labels import read_labels, read_probabilities
from src.score.metric import align
from src.score.prior import constant, cross_fitted_prior, raised_prior, weight_aware_prior
from src.score.report import assign_folds, build_report, format_report
from src.score.submission import combine_series, combine_tables

PRIOR_FITS = {"prior": weight_aware_prior, "raised_prior": raised_prior}


@dataclass(frozen=True)
class ScoreOptions:
    """Options of score.py."""

    labels: Path
    """true labels, in the form of train.csv"""
    oof: tuple[Path, ...] = ()
    """out-of-fold tables: patient_id, the 13 columns, and perhaps series_id and fold"""
    submission: Path | None = None
    """a submission, instead of out-of-fold tables"""
    folds: Path | None = None
    """patient_id, fold: needed where the tables have no fold column, or where only some folds were trained"""
    prior_labels: Path | None = None
    """training labels that the priors beside a submission's score are fitted on"""
    json: Path | None = None
    """where to write the same figures as JSON"""
    rounds: int = 1000
    """bootstrap resamples; more make the intervals' ends steadier"""
    level: float = 0.9
    """share of the resamples inside an interval"""

    def __post_init__(self) -> None:
        if bool(self.oof) == bool(self.submission):
            raise UserError("give either --oof TABLE ... or --submission FILE")
        if self.submission and self.folds:
            raise UserError("--folds goes with --oof: a submission has no folds")
        if self.oof and self.prior_labels:
            raise UserError(
                "--prior-labels goes with --submission: with --oof the priors come from the other folds"
            )
        if self.rounds < 1 or not 0 < self.level < 1:
            raise UserError("--rounds must be at least 1, and --level between 0 and 1")


def score_oof(options: ScoreOptions) -> dict:
    """Read out-of-fold tables and score them."""
    labels = read_labels(options.labels)
    predictions = combine_tables([read_patients(path) for path in options.oof])
    table = None if options.folds is None else read_folds(options.folds, labels.patient_id)
    folds = assign_folds(labels, predictions, table)
    if folds is None:
        say("no folds are known (no --folds, no fold column): neither a score per fold nor priors\n")
        return build_report(labels, predictions, None, {}, options.rounds, options.level)
    scored = labels[labels.patient_id.isin(folds.patient_id)]
    if len(scored) < len(labels):
        names = ", ".join(str(fold) for fold in sorted(folds.fold.unique()))
        say(f"only the folds in the tables are scored: {names} ({len(scored)} of {len(labels)} patients)\n")
    priors = {}
    if len(labels) > folds.groupby("fold").size().max():
        priors = {key: cross_fitted_prior(labels, folds, fit) for key, fit in PRIOR_FITS.items()}
    return build_report(scored, predictions, folds, priors, options.rounds, options.level)


def score_submission(options: ScoreOptions) -> dict:
    """Read a submission, which has one row a patient, and score it."""
    labels = read_labels(options.labels)
    predictions = align(read_probabilities(options.submission), labels.patient_id, "rows of the submission")
    priors = {}
    if options.prior_labels:
        known = read_labels(options.prior_labels)
        priors = {key: constant(fit(known), labels.patient_id) for key, fit in PRIOR_FITS.items()}
    return build_report(labels, predictions, None, priors, options.rounds, options.level)


def read_patients(path: Path) -> pd.DataFrame:
    """One out-of-fold table, a row a patient."""
    rows = read_probabilities(path)
    try:
        return combine_series(rows)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ScoreOptions, argv, prog="score.py", description=__doc__)
    report = score_submission(options) if options.submission else score_oof(options)
    say(format_report(report))
    if options.json:
        write_json(report, options.json)
        say(f"\nwrote {options.json}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
