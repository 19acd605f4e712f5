"""Score predictions with the competition's metric: per fold, overall, and against image-free priors.

    python score.py --oof runs/cls/demo/oof.csv --labels train.csv --folds folds/rsna2023_5fold.csv
    python score.py --oof A/oof_series.csv B/oof_series.csv --labels train.csv --json score.json
    python score.py --oof A/oof_series.csv B/oof_series.csv --labels train.csv --fit post.json
    python score.py --submission submission.csv --labels test_labels.csv --prior-labels train.csv

Rows of one patient (several series) are averaged, then tables (several models), per target over those that
predict it; several tables are also scored separately and compared with the first. The priors are fitted on
the other folds of --labels, or for a submission on --prior-labels. Lower is better.

--fit fits the post-processing (weights of tables, rule for two series, temperatures, multipliers, coupling of
any injury) that infer.py --post applies; pass it oof_series.csv of the runs, in which targets that a run does
not predict are empty and patients without a series are marked. The reported gain is cross-fitted: every fold
is adjusted by a fit to the other folds.
"""

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import require_writable, write_json
from src.core.log import say
from src.score.options import ScoreOptions


def main(argv: list[str] | None = None) -> None:
    """Read the options, score, print the report, write the requested files."""
    options = parse_options(ScoreOptions, argv, prog="score.py", description=__doc__)
    for path in (options.json, options.fit, options.plots and options.plots / "roc.png"):
        if path:
            require_writable(path)
    # imported here, so that --help and errors in options do not wait for pandas
    from src.data.folds import read_folds
    from src.data.labels import read_labels, read_probabilities
    from src.score.score_text import format_report
    from src.score.scoring import score_oof, score_submission

    labels, bootstrap = read_labels(options.labels), (options.rounds, options.level)
    if options.submission:
        submission = read_probabilities(options.submission)
        known = read_labels(options.prior_labels) if options.prior_labels else None
        scored = score_submission(labels, submission, known, *bootstrap)
    else:
        tables = {str(path): read_probabilities(path) for path in options.oof}
        folds = read_folds(options.folds, labels.patient_id) if options.folds else None
        scored = score_oof(labels, tables, folds, options.fit, *bootstrap)
    say(format_report(scored.report))
    if options.plots:
        from src.report.score_plots import plot_scores

        plot_scores(scored.labels, scored.predictions, options.plots)
    if options.json:
        write_json(scored.report, options.json)
    for path in (options.json, options.fit, options.plots):
        if path:
            say(f"\nwrote {path}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
