"""Options of score.py."""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import check_range


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `score.py`."""

    labels: Path
    """True labels in the format of train.csv."""

    oof: tuple[Path, ...] = ()
    """Out-of-fold tables: patient_id, the 13 columns and, optionally, series_id and fold."""

    submission: Path | None = None
    """A submission to score instead of out-of-fold tables."""

    folds: Path | None = None
    """Table patient_id, fold: required if the tables have no fold, or only some folds were trained."""

    fit: Path | None = None
    """JSON file to write: post-processing fitted on the tables."""

    prior_labels: Path | None = None
    """Training labels for the priors that a submission's score is compared with."""

    plots: Path | None = None
    """Folder for roc.png, precision_recall.png, calibration.png and confusion.png."""

    json: Path | None = None
    """JSON file for the same results."""

    rounds: int = 1000
    """Number of bootstrap resamples; with more, the ends of the intervals vary less."""

    level: float = 0.9
    """Confidence level: share of the resamples inside an interval."""

    def __post_init__(self) -> None:
        check_range(self, "rounds", at_least=1)
        check_range(self, "level", above=0, below=1)
        if bool(self.oof) == bool(self.submission):
            raise ValueError("give either --oof TABLE ... or --submission FILE")
        if len({path.absolute() for path in self.oof}) < len(self.oof):
            raise ValueError("option --oof names a table twice")
        if self.submission and (self.folds or self.fit):
            given = "--folds" if self.folds else "--fit"
            raise ValueError(f"option {given} goes with --oof: a submission has no folds")
        if self.oof and self.prior_labels:
            raise ValueError(
                "option --prior-labels goes with --submission: out of fold, other folds give the priors"
            )
