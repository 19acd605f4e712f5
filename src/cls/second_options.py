"""Options of the second level."""

from dataclasses import dataclass
from pathlib import Path

from src.core.runtime import PRECISIONS
from src.nn.sequence import POOLINGS, SEQUENCES

FREE_TO_CHANGE = ("runs", "data", "labels", "folds", "output", "precision", "workers", "resume")
"""Options that may change within a run: networks, data and precision are known by what they come to."""

_CHOICES = {
    "sequence": SEQUENCES,
    "pooling": POOLINGS,
    "precision": PRECISIONS,
    "resume": ("auto", "never"),
}


@dataclass(frozen=True)
class SecondLevelOptions:
    """Options of `python -m src.cls.second_level`."""

    runs: tuple[Path, ...]
    """Finished runs of train_cls.py on the same folds and with stacks of one length."""

    data: Path
    """Prepared data set that they were trained on."""

    labels: Path
    """Patient labels: train.csv of the competition."""

    folds: Path
    """Folds that the runs were trained with."""

    output: Path
    """Folder of the run."""

    sequence: str = "gru"
    """Sequence model over the slices: lstm, gru, transformer, or none."""

    hidden: int = 8
    """Its width, for each direction. The defaults are those that did not learn 100 patients by heart, see
    docs/experiments.md; with thousands, try a wider one and more epochs."""

    pooling: str = "attention"
    """From slices to the series: max, mean or attention."""

    dropout: float = 0.5
    """Dropout of the features."""

    epochs: int = 10
    """Passes over the series of the other folds."""

    batch: int = 32
    """Series a batch."""

    lr: float = 2e-3
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.05
    """AdamW's."""

    seeds: int = 3
    """Models of each fold, averaged."""

    seed: int = 42
    """Start weights and order follow from it."""

    precision: str = "auto"
    """Of the first level's networks."""

    workers: int = 1
    """Processes that read stacks."""

    resume: str = "auto"
    """auto continues what an interrupted run left in --output; never trains all folds anew, from the features
    that are there as far as they fit."""

    def __post_init__(self) -> None:
        for name in ("hidden", "epochs", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1, got {self.dropout}")
        if min(self.workers, self.seed, self.weight_decay) < 0 or self.lr <= 0:
            raise ValueError("--workers, --seed and --weight-decay must be at least 0, --lr above 0")
