"""Predict test patients with the fold models and write a valid submission.csv.

From raw DICOM (nothing is written but the results):
    python infer.py --input data/rsna --models runs/cls/v2 --sample data/rsna/sample_submission.csv \\
        --output submission.csv

From a prepared data set, two runs averaged:
    python infer.py --input data/prepared_test --models runs/cls/v2 runs/cls/v1 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

With the post-processing that score.py --fit found on the runs' out-of-fold tables:
    python infer.py --input data/rsna --models runs/cls/v2 runs/cls/v1 --post post.json \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Beside the submission, report.csv says for every series whether it was read, and who got the prior.
"""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import require_writable, write_table
from src.core.log import say, warn
from src.core.runtime import Runtime
from src.data.labels import read_probabilities
from src.infer.ensemble import Ensemble
from src.infer.pipeline import predict_patients
from src.infer.sources import open_source
from src.nn.augmentation import FLIPS
from src.score.postprocess import read_post
from src.score.submission import write_submission


@dataclass(frozen=True)
class InferOptions:
    """Options of `infer.py`."""

    input: Path
    """Raw data with test_images/<patient>/<series>/*.dcm (folder or zip), or a prepared data set."""

    models: tuple[Path, ...]
    """Run folders of train_cls.py; all their finished folds are averaged."""

    sample: Path
    """sample_submission.csv: which patients, in which order."""

    output: Path
    """Submission to write; report.csv stands beside it."""

    post: Path | None = None
    """Post-processing of score.py --fit, fitted on the out-of-fold tables of the same runs in the same
    order."""

    tta: tuple[str, ...] | None = None
    """Flips averaged for each model: none, h, v, hv. By default those of its out-of-fold predictions."""

    precision: str = "auto"
    """fp32, bf16, fp16, or auto (bf16 or fp16 on a GPU, fp32 on a CPU)."""

    def __post_init__(self) -> None:
        if self.tta is not None and (not self.tta or set(self.tta) - set(FLIPS)):
            raise ValueError(f"--tta takes {', '.join(FLIPS)}, got {' '.join(self.tta)}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(InferOptions, argv, prog="infer.py", description=__doc__)
    require_writable(options.output)
    source = open_source(options.input)
    sample = read_probabilities(options.sample)
    if sample.empty:
        raise UserError(f"{options.sample} names no patient")
    post = None if options.post is None else read_post(options.post)
    if post is not None:
        post.require_tables(len(options.models))
    ensemble = Ensemble(options.models, Runtime.create(options.precision), options.tta)
    say(f"{len(sample)} patients, {len(ensemble.members)} fold models")
    predictions, report = predict_patients(source, ensemble, list(sample.patient_id), post)
    write_submission(predictions, sample, options.output)
    write_table(report, options.output.parent / "report.csv")
    counts = report.status.value_counts()
    say(f"series predicted: {counts.get('ok', 0)}, skipped: {counts.get('skipped', 0)}")
    if "prior" in counts:
        warn(f"{counts['prior']} patients without a readable series got the prior, see report.csv")
    say(f"submission: {options.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
