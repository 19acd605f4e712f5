"""Predict test patients with the fold models and write a valid submission.csv.

From raw DICOM (nothing is written but the results):
    python infer.py --input data/rsna --models runs/cls/v2 --sample data/rsna/sample_submission.csv \\
        --output submission.csv

From a prepared data set, two runs averaged:
    python infer.py --input data/prepared_test --models runs/cls/v2 runs/cls/v1 \\
        --sample data/rsna/sample_submission.csv --output submission.csv

Beside the submission, report.csv says for every series whether it was read, and who got the prior.
"""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import write_table
from src.core.log import say
from src.core.runtime import Runtime
from src.data.labels import read_probabilities
from src.infer.ensemble import Ensemble
from src.infer.pipeline import predict_patients
from src.infer.sources import open_source
from src.score.submission import write_submission


@dataclass(frozen=True)
class InferOptions:
    """Options of `infer.py`."""

    input: Path
    """Raw data with test_images/<patient>/<series>/*.dcm, or a prepared data set."""

    models: tuple[Path, ...]
    """Run folders of train_cls.py; all their finished folds are averaged."""

    sample: Path
    """sample_submission.csv: which patients, in which order."""

    output: Path
    """Submission to write; report.csv stands beside it."""

    tta: tuple[str, ...] = ("none", "h", "v", "hv")
    """Flips averaged for each model: none, h, v, hv. `none` alone takes a quarter of the time."""

    precision: str = "auto"
    """fp32, bf16, fp16, or auto (bf16 or fp16 on a GPU, fp32 on a CPU)."""

    def __post_init__(self) -> None:
        if not self.tta or set(self.tta) - {"none", "h", "v", "hv"}:
            raise ValueError(f"--tta takes none, h, v, hv, got {' '.join(self.tta)}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(InferOptions, argv, prog="infer.py", description=__doc__)
    source = open_source(options.input)
    sample = read_probabilities(options.sample)
    if sample.empty:
        raise UserError(f"{options.sample} names no patient")
    ensemble = Ensemble(options.models, Runtime.create(options.precision), options.tta)
    say(f"{len(sample)} patients, {len(ensemble.members)} fold models")
    predictions, report = predict_patients(source, ensemble, list(sample.patient_id))
    write_submission(predictions, sample, options.output)
    write_table(report, options.output.parent / "report.csv")
    for status, count in report.status.value_counts().items():
        say(f"{'patients with the prior' if status == 'prior' else f'series {status}'}: {count}")
    say(f"submission: {options.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
