"""Options of infer.py."""

import os
from dataclasses import dataclass
from pathlib import Path

from src.cls.options import Flip
from src.core.config import Precision, check_range

MAX_JOBS = 8
"""Default limit of --jobs: each job may hold a whole series."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of `infer.py --check`."""

    check: Path
    """Submission to check."""

    sample: Path
    """sample_submission.csv, which defines the patients and their order."""


@dataclass(frozen=True)
class InferOptions:
    """Options of `infer.py`."""

    input: Path
    """Raw data with test_images/<patient>/<series>/*.dcm (folder or zip), or a prepared data set."""

    models: tuple[Path, ...]
    """Run folders of train_cls.py; all their finished folds are averaged."""

    sample: Path
    """sample_submission.csv, which defines the patients and their order."""

    output: Path
    """Submission to write; report.csv is written beside it."""

    segmenter: Path | None = None
    """Run folder of train_seg.py, whose networks find organs in raw data for models that use masks."""

    organ_spacing_mm: float = 0.0
    """About the distance in mm between the slices in which --segmenter finds organs; between them masks are
    interpolated. 0: it sees all. Take that of segment.py."""

    weights: tuple[float, ...] | None = None
    """Weights of the runs, in their order; equal by default."""

    post: Path | None = None
    """Post-processing of score.py --fit, fitted on the out-of-fold tables of the same runs in the same
    order; it includes its own weights."""

    tta: tuple[Flip, ...] | None = None
    """Flips averaged for each model: none, h, v, hv; default: those of its out-of-fold predictions."""

    precision: Precision = "auto"
    """fp32, bf16, fp16, or auto (bf16 or fp16 on a GPU, fp32 on a CPU)."""

    max_hours: float | None = None
    """Time limit of the run in hours. While the run is late, one fold of each run predicts series without
    flips; patients that are not reached in time get the prior."""

    jobs: int | None = None
    """Threads that read series ahead, each with a decoding process; default: the number of cores minus one,
    at most 8."""

    def __post_init__(self) -> None:
        if self.max_hours is not None:
            check_range(self, "max_hours", above=0)
        if self.jobs is not None:
            check_range(self, "jobs", at_least=1)
        if self.tta == ():
            raise ValueError("option --tta needs at least one flip; none predicts without flips")
        if self.weights is not None and self.post is not None:
            raise ValueError("--post has weights of its own: leave --weights out")
        if self.output.name == "report.csv":
            raise ValueError("--output report.csv is the report's own name: choose another")
        weights = self.weights or (1.0,) * len(self.models)
        if len(weights) != len(self.models) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"--weights takes a number for each of the {len(self.models)} --models, at least 0, not all 0"
            )

    @property
    def threads(self) -> int:
        """Number of threads that read."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.jobs or min(MAX_JOBS, max(1, cores - 1))
