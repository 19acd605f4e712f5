"""Predict test patients with fold models and write a valid submission.csv, even if files are damaged.

From raw DICOM (only the results are written):
    python infer.py --input data/rsna-2023-abdominal-trauma-detection.zip --models runs/cls/plus \\
        --sample data/rsna/sample_submission.csv --output submission.csv

From a prepared data set (prepare_data.py --split test), two runs averaged, the first with twice the weight:
    python infer.py --input data/prepared_test --models runs/cls/plus runs/cls/v2 --weights 2 1 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

With the post-processing that score.py --fit found on the runs' out-of-fold tables, and a time limit:
    python infer.py --input data/unpacked --models runs/cls/plus --post runs/cls/post.json --max-hours 8.5 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Models that use organ masks, from raw DICOM:
    python infer.py --input data/unpacked --models runs/cls/organ_aware --segmenter runs/seg/dual \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Only check whether a submission would be accepted:
    python infer.py --check submission.csv --sample data/rsna/sample_submission.csv

report.csv, beside the submission, lists every series with its status and reason, and the patients that got
the prior. Series whose images may be wrong are predicted, with the status doubtful. A run that is ended by
SIGTERM, Ctrl-C or --max-hours also leaves a complete submission.
"""

import sys
import time

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.infer.options import CheckOptions, InferOptions


def main(argv: list[str] | None = None) -> None:
    started = time.monotonic()
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] == "--check" for word in argv):
        check(parse_options(CheckOptions, argv, prog="infer.py", description=__doc__))
        return
    options = parse_options(InferOptions, argv, prog="infer.py", description=__doc__)
    from src.infer.pipeline import predict_patients  # imports torch, which --help and --check do not need

    predict_patients(options, started)


def check(options: CheckOptions) -> None:
    from src.infer.results import check_submission

    patients = check_submission(options.check, options.sample)
    print(f"{options.check} is valid: {patients} patients")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
