"""Predict test patients with the fold models and write a valid submission.csv, whatever their files are.

From raw DICOM (nothing is written but the results):
    python infer.py --input data/rsna --models runs/cls/v2 --sample data/rsna/sample_submission.csv \\
        --output submission.csv

From a prepared data set, two runs averaged, the first with twice the weight:
    python infer.py --input data/prepared_test --models runs/cls/v2 runs/cls/v1 --weights 2 1 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

With the post-processing that score.py --fit found on the runs' out-of-fold tables, and a time limit:
    python infer.py --input data/rsna --models runs/cls/v2 runs/cls/v1 --post post.json --max-hours 8.5 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Models that look at organs, from raw DICOM:
    python infer.py --input data/rsna --models runs/cls/organ_aware --segmenter runs/seg/plus \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Only look whether a submission would be accepted:
    python infer.py --check submission.csv --sample data/rsna/sample_submission.csv

Beside the submission, report.csv says of every series whether it was read, and who got the prior. A run that
SIGTERM, Ctrl-C or --max-hours ends leaves a complete submission too.
"""

import os
import sys
import time
from functools import partial

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable, write_table
from src.core.log import say, warn
from src.core.runtime import Runtime
from src.infer.budget import Pace, stop_on_signals
from src.infer.careful import CarefulNetworks
from src.infer.check import check_submission, read_sample
from src.infer.inputs import open_source
from src.infer.networks import Networks
from src.infer.options import CheckOptions, InferOptions, choose_post
from src.infer.pipeline import order_series, predict_series
from src.infer.placement import Placement
from src.infer.results import Results
from src.score.submission import write_submission


def main(argv: list[str] | None = None) -> None:
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] == "--check" for word in argv):
        check = parse_options(CheckOptions, argv, prog="infer.py", description=__doc__)
        patients = check_submission(check.check, check.sample)
        say(f"{check.check} is valid: {patients} patients")
        return
    options = parse_options(InferOptions, argv, prog="infer.py", description=__doc__)
    with stop_on_signals() as stop:
        require_writable(options.output)
        sample = read_sample(options.sample)
        post = choose_post(options)
        placement = Placement.of(Runtime.create(options.precision, one_process=True))
        load = partial(Networks, runs=options.models, segmenter=options.segmenter, flips=options.tta)
        networks = CarefulNetworks(load, placement)
        ensemble = networks.networks.ensemble
        source = open_source(options.input, networks.networks)
        series = order_series(source, list(sample.patient_id))
        results = Results(series, list(sample.patient_id), post, ensemble.prior)

        def save() -> None:
            write_submission(results.predictions(), sample, options.output)
            write_table(results.report(), options.output.parent / "report.csv")

        save()  # the prior for everybody: from here on, whatever happens, there is a valid submission
        shares = ensemble.shares(post.weights)
        passes = [ensemble.count_passes(share) for share in shares]
        jobs = options.jobs or max(1, (os.cpu_count() or 1) - 1)
        max_s = None if options.max_hours is None else 3600 * options.max_hours
        pace = Pace(len(series), shares, passes, max_s, jobs, started)
        say(f"{len(sample)} patients, {len(series)} series, {passes[0]} forward passes; {placement.device}")
        early = predict_series(source, networks, series, results, pace, stop, save)
        save()
    report = results.report()
    counts = report.status.value_counts()
    say(f"series: {', '.join(f'{counts[status]} {status}' for status in counts.index if status != 'prior')}")
    if "prior" in counts:
        warn(f"{counts['prior']} patients got the prior, see report.csv")
    if early:
        warn(f"the run ended early ({early}): the submission is complete, with what was known by then")
    say(f"submission: {options.output}")
    if stop.name:
        raise SystemExit(stop.exit_status)
    if not {"ok", "thinned"} & set(counts.index) and not early:
        reason = report.reason[report.status == "skipped"].iloc[0]
        raise UserError(f"no series could be predicted, everybody got the prior: {reason}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
