"""Options of score.py."""

from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `score.py`."""

    labels: Path
    """true labels, in the form of train.csv"""
    oof: tuple[Path, ...] = ()
    """out-of-fold tables: patient_id, the 13 columns, and perhaps series_id and fold"""
    submission: Path | None = None
    """a submission, instead of out-of-fold tables"""
    folds: Path | None = None
    """patient_id, fold: needed where the tables have no fold column, or where only some folds were trained"""
    fit: Path | None = None
    """JSON file for a post-processing fitted on the tables"""
    prior_labels: Path | None = None
    """training labels that the priors beside a submission's score are fitted on"""
    plots: Path | None = None
    """folder for roc.png, precision_recall.png, calibration.png and confusion.png"""
    json: Path | None = None
    """where to write the same figures as JSON"""
    rounds: int = 1000
    """bootstrap resamples; more make the intervals' ends steadier"""
    level: float = 0.9
    """share of the resamples inside an interval"""

    def __post_init__(self) -> None:
        if bool(self.oof) == bool(self.submission):
            raise UserError("give either --oof TABLE ... or --submission FILE")
        if len({path.absolute() for path in self.oof}) < len(self.oof):
            raise UserError("--oof names a table twice")
        if self.submission and (self.folds or self.fit):
            given = "--folds" if self.folds else "--fit"
            raise UserError(f"{given} goes with --oof: a submission has no folds")
        if self.oof and self.prior_labels:
            raise UserError("--prior-labels goes with --submission: out of fold, other folds give the priors")
        if self.rounds < 1 or not 0 < self.level < 1:
            raise UserError("--rounds must be at least 1, and --level between 0 and 1")
