"""Score predictions by the competition's metric: per fold, overall, and against priors without any image.

    python score.py --oof runs/cls/demo/oof.csv --labels train.csv --folds folds/rsna2023_5fold.csv
    python score.py --oof A/oof_series.csv B/oof_series.csv --labels train.csv --json score.json
    python score.py --oof A/oof_series.csv B/oof_series.csv --labels train.csv --fit post.json
    python score.py --submission submission.csv --labels test_labels.csv --prior-labels train.csv

Rows of one patient (several series) are averaged, then tables (several models), of each target those that
tell it; several tables are also scored one by one, and compared with the first. The priors are fitted on the
other folds of --labels, or for a submission on --prior-labels. Lower is better.

--fit finds the post-processing (weights of tables, rule for two series, temperatures, multipliers, coupling
of any injury) that infer.py --post applies; give it oof_series.csv of the runs, which says what a run does
not tell and who has no series. The gain that it reports is cross-fitted: every fold is adjusted by a fit to
the other folds.
"""

import pandas as pd

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import require_writable, write_json
from src.core.log import say
from src.data.folds import read_folds
from src.data.labels import read_labels, read_probabilities
from src.report.score_plots import plot_scores
from src.score.breakdown import by_series_count, format_series_count, format_side_by_side, side_by_side
from src.score.metric import align
from src.score.missing_targets import explain_untold, fill_targets, fill_untold, untold_targets
from src.score.options import ScoreOptions
from src.score.post_report import fit_and_report, format_fit
from src.score.prior import constant, cross_fitted_prior, raised_prior, weight_aware_prior
from src.score.report import assign_folds, build_report, format_report
from src.score.submission import combine_tables, folds_differ, one_row_a_patient

PRIOR_FITS = {"prior": weight_aware_prior, "raised_prior": raised_prior}


def score_oof(options: ScoreOptions) -> dict:
    """Read out-of-fold tables, score them, and fit the post-processing if that is asked for."""
    labels = read_labels(options.labels)
    tables = {str(path): read_probabilities(path) for path in options.oof}
    by_patient = one_row_a_patient(tables)
    if folds_differ(by_patient.values()):
        say("the tables put patients in different folds: their folds are left aside")
        by_patient = {name: table.drop(columns="fold", errors="ignore") for name, table in by_patient.items()}
    predictions = combine_tables(list(by_patient.values()))
    given = None if options.folds is None else read_folds(options.folds, labels.patient_id)
    folds = assign_folds(labels, predictions, given)
    scored, priors = labels, {}
    if folds is None:
        say("no folds are known (give --folds): neither a score per fold nor priors\n")
    else:
        scored = labels[labels.patient_id.isin(folds.patient_id)].reset_index(drop=True)
        if len(scored) < len(labels):
            names = ", ".join(str(fold) for fold in sorted(folds.fold.unique()))
            counts = f"{len(scored)} of {len(labels)} patients"
            say(f"only the folds in the tables are scored: {names} ({counts})\n")
        if len(labels) > folds.groupby("fold").size().max():
            priors = {key: cross_fitted_prior(labels, folds, fit) for key, fit in PRIOR_FITS.items()}
    for line in explain_untold(by_patient):
        say(f"{line}\n")
    by_none = untold_targets(predictions)
    predictions = fill_targets(predictions, by_none, labels, folds)
    bootstrap = options.rounds, options.level
    report = build_report(scored, predictions, folds, priors, *bootstrap)
    report["untold"] = list(by_none)
    counts = pd.concat(table.groupby("patient_id").size() for table in tables.values())
    report["series"] = by_series_count(scored, predictions, counts.groupby(level=0).max())
    if len(tables) > 1:
        alone = {name: fill_untold(table, labels, folds) for name, table in by_patient.items()}
        report["tables"] = side_by_side(scored, alone, *bootstrap)
    if options.fit:
        filled = [fill_targets(table, by_none, labels, folds) for table in tables.values()]
        report |= fit_and_report(scored, filled, list(tables), folds, options.fit, *bootstrap)
    if options.plots:
        plot_scores(scored, predictions, options.plots)
    return report


def score_submission(options: ScoreOptions) -> dict:
    """Read a submission, which has one row a patient, and score it."""
    labels = read_labels(options.labels)
    predictions = align(read_probabilities(options.submission), labels.patient_id, "rows of the submission")
    priors = {}
    if options.prior_labels:
        known = read_labels(options.prior_labels)
        priors = {key: constant(fit(known), labels.patient_id) for key, fit in PRIOR_FITS.items()}
    if options.plots:
        plot_scores(labels, predictions, options.plots)
    return build_report(labels, predictions, None, priors, options.rounds, options.level)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ScoreOptions, argv, prog="score.py", description=__doc__)
    for path in (options.json, options.fit, options.plots and options.plots / "roc.png"):
        if path:
            require_writable(path)
    report = score_submission(options) if options.submission else score_oof(options)
    blocks = [format_report(report)]
    if report.get("series"):
        blocks.append(format_series_count(report["series"]))
    if "tables" in report:
        blocks.append(format_side_by_side(report["tables"]))
    if options.fit:
        blocks.append(format_fit(report, [str(path) for path in options.oof]))
    say("\n\n".join(blocks))
    if options.json:
        write_json(report, options.json)
    for path in (options.json, options.fit, options.plots):
        if path:
            say(f"\nwrote {path}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
