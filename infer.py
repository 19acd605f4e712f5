"""Predict test patients with the fold models and write a valid submission.csv, whatever their files are.

From raw DICOM (nothing is written but the results):
    python infer.py --input data/rsna-2023-abdominal-trauma-detection.zip --models runs/cls/plus \\
        --sample data/rsna/sample_submission.csv --output submission.csv

From a prepared data set (prepare_data.py --split test), two runs averaged, the first with twice the weight:
    python infer.py --input data/prepared_test --models runs/cls/plus runs/cls/v2 --weights 2 1 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

With the post-processing that score.py --fit found on the runs' out-of-fold tables, and a time limit:
    python infer.py --input data/unpacked --models runs/cls/plus --post runs/cls/post.json --max-hours 8.5 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Models that look at organs, from raw DICOM:
    python infer.py --input data/unpacked --models runs/cls/organ_aware --segmenter runs/seg/dual \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Only look whether a submission would be accepted:
    python infer.py --check submission.csv --sample data/rsna/sample_submission.csv

Beside the submission, report.csv says of every series whether it was read, and who got the prior. A run that
SIGTERM, Ctrl-C or --max-hours ends leaves a complete submission too.
"""

import math
import sys
import time
from functools import partial

import pandas as pd

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable, write_table
from src.core.log import say, warn
from src.infer.budget import Pace, list_costs
from src.infer.check import check_submission, read_sample
from src.infer.fallback import CarefulNetworks
from src.infer.inputs import open_source, require_input
from src.infer.networks import Networks
from src.infer.options import CheckOptions, InferOptions, choose_post
from src.infer.pipeline import order_series, predict_series
from src.infer.placement import Placement
from src.infer.results import Results
from src.infer.stopping import last_resort, stop_on_signals
from src.score.submission import write_submission

GRACE_S = 300.0
"""Beyond --max-hours, before a run that no longer answers is ended."""


def main(argv: list[str] | None = None) -> None:
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] == "--check" for word in argv):
        check = parse_options(CheckOptions, argv, prog="infer.py", description=__doc__)
        patients = check_submission(check.check, check.sample)
        say(f"{check.check} is valid: {patients} patients")
        return
    run(parse_options(InferOptions, argv, prog="infer.py", description=__doc__), started)


def run(options: InferOptions, started: float) -> None:
    """Predict all series, and leave a valid submission however it ends."""
    report_path = options.output.parent / "report.csv"
    require_input(options.input)
    require_writable(options.output)
    sample, post = read_sample(options.sample), choose_post(options)
    patient_ids = list(sample.patient_id)
    limit_s = math.inf if options.max_hours is None else 3600 * options.max_hours
    load = partial(
        Networks,
        runs=options.models,
        weights=post.weights,
        segmenter=options.segmenter,
        flips=options.tta,
    )
    with stop_on_signals() as stop:
        networks = CarefulNetworks(load)
        source = open_source(options.input, networks.networks)
        series = order_series(source, patient_ids)
        prior = networks.networks.ensemble.prior
        results = Results(series, patient_ids, post, prior, source.why_none)

        def save() -> None:
            try:
                write_submission(results.predictions(), sample, options.output)
                write_table(results.report(), report_path)
            except OSError as error:
                raise UserError(f"cannot write {options.output}: {error.strerror}") from None

        save()  # the prior for everybody: from here on, whatever happens, there is a valid submission
        try:
            with last_resort(started + limit_s + GRACE_S - time.monotonic(), save):
                networks.move(lambda: Placement.fastest(options.precision))
                device = networks.networks.placement.device
                pace = Pace(
                    len(series),
                    list_costs(networks.networks),
                    limit_s,
                    jobs=options.threads,
                    side_by_side=device.type != "cpu",
                    started=started,
                )
                passes = sum(pace.costs[0].passes)
                say(f"{len(sample)} patients, {len(series)} series, {passes} forward passes each; {device}")
                early = predict_series(source, networks, series, results, pace, stop, save, options.threads)
        finally:
            save()
    tell(results.report(), early, options)
    if stop.name:
        raise SystemExit(stop.exit_status)


def tell(report: pd.DataFrame, early: str, options: InferOptions) -> None:
    """Say how it went.

    Raises:
        UserError: nobody got anything but the prior, though there was time.
    """
    counts = report.status.value_counts()
    say(f"series: {', '.join(f'{counts[status]} {status}' for status in counts.index if status != 'prior')}")
    if "prior" in counts:
        warn(f"{counts['prior']} patients got the prior, see report.csv")
    if early:
        warn(f"the run ended early ({early}): the submission is complete, with what was known by then")
    say(f"submission: {options.output}")
    if not early and not {"ok", "thinned"} & set(counts.index):
        reason = report.reason[(report.status != "prior") | (len(counts) == 1)].max()
        raise UserError(f"no series could be predicted, everybody got the prior: {reason}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
