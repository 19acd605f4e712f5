"""Options of the second level."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.cls.options import Pooling, SequenceModel
from src.core.config import Doubtful, Precision, check_range

FREE_TO_CHANGE = (
    *("runs", "data", "labels", "folds", "output", "doubtful", "precision", "cache", "workers", "resume"),
)
"""Options that may change within a run: inputs and precision are compared by content."""


@dataclass(frozen=True)
class SecondLevelOptions:
    """Options of `python -m src.cls.second_level`."""

    runs: tuple[Path, ...]
    """Finished runs of train_cls.py on the same folds; their views may differ."""

    data: Path
    """Prepared data set that they were trained on."""

    labels: Path
    """Patient labels: train.csv of the competition."""

    folds: Path
    """Folds that the runs were trained with."""

    output: Path
    """Folder of the run."""

    doubtful: Doubtful = "skip"
    """Doubtful series, whose images may be wrong (series.csv says why): skip leaves them out of training,
    keep trains on them like on others. They are predicted in either case."""

    sequence: SequenceModel = "gru"
    """Sequence model over the slices."""

    hidden: int = 8
    """Width of the sequence model per direction. The defaults did not overfit 100 patients, see
    docs/studies/experiments.md; with thousands, try a wider model and more epochs."""

    pooling: Pooling = "attention"
    """Pooling of the slices of a series."""

    dropout: float = 0.5
    """Dropout of the features."""

    epochs: int = 10
    """Passes over the series of the other folds."""

    batch: int = 32
    """Series per batch."""

    lr: float = 2e-3
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.05
    """Weight decay of AdamW."""

    seeds: int = 3
    """Number of models per fold, averaged."""

    seed: int = 42
    """Seed of initial weights and order."""

    precision: Precision = "auto"
    """Precision of the first level's networks."""

    cache: Path | None = None
    """Folder on a fast disk for raw copies of the slices, as in train_cls.py, which may share it."""

    workers: int = 1
    """Processes that read stacks."""

    resume: Literal["auto", "never"] = "auto"
    """auto continues an interrupted run in --output; never trains all folds from scratch, and recomputes
    features only if inputs have changed."""

    def __post_init__(self) -> None:
        check_range(self, "hidden", "epochs", "batch", "seeds", at_least=1)
        check_range(self, "dropout", at_least=0, below=1)
        check_range(self, "workers", "seed", "weight_decay", at_least=0)
        check_range(self, "lr", above=0)
