"""Options of `train_cls.py`."""

from dataclasses import dataclass
from pathlib import Path

from src.core.runtime import PRECISIONS
from src.nn.augmentation import FLIPS
from src.nn.sequence import POOLINGS, RECURRENT

RESUME_MODES = ("auto", "never")
SHARES = ("dropout", "drop_path", "smoothing", "flip", "rotate90", "affine", "gamma", "coarse_dropout")
"""Options that are a probability or a share."""


@dataclass(frozen=True)
class ClassifierOptions:
    """A 5-fold run. Defaults are the published CNN-LSTM setting where the paper gives one."""

    data: Path
    """Prepared data set (a folder that prepare_data.py wrote)."""

    labels: Path
    """Patient labels: train.csv of the competition."""

    folds: Path
    """Folds: a table patient_id, fold (python -m src.data.folds makes one)."""

    output: Path
    """Folder of the run: fold0/ ... fold4/, oof_series.csv, oof.csv, config.yaml."""

    fold: tuple[int, ...] | None = None
    """Folds to train; all of them when absent. A finished fold is not trained again."""

    encoder: Path | None = None
    """encoder.safetensors of train_voco.py; its backbone replaces --backbone. Without it: from scratch."""

    backbone: str = "efficientnet_b0"
    """Any timm backbone, when no --encoder is given."""

    pretrained: bool = False
    """Start from timm's ImageNet weights (its cache or the network); not together with --encoder."""

    slices: int = 48
    """Evenly spaced slices a series. More find small injuries and cost time in proportion."""

    crop: int = 192
    """Side of the network's input: a random crop of the prepared slices, the middle when predicting."""

    recurrent: str = "lstm"
    """Sequence model over the slices: lstm or gru, both bidirectional."""

    hidden: int = 128
    """Width of the sequence model, for each direction."""

    pooling: str = "max"
    """From slices to the series: max, mean or attention."""

    epochs: int = 20
    """Passes over the training folds. The schedule ends with the last."""

    batch: int = 4
    """Series a batch and process. The memory grows with batch times slices."""

    accumulation: int = 1
    """Batches an optimiser step: raise it when a larger batch does not fit."""

    lr: float = 1.25e-4
    """Peak learning rate of AdamW. Raise it for a small backbone from scratch, lower it if the loss jumps."""

    encoder_lr_scale: float = 1.0
    """The encoder's share of --lr. Below 1 it keeps more of what pre-training gave it."""

    warmup_epochs: float = 1.0
    """Epochs of linear warm-up before the cosine."""

    weight_decay: float = 0.01
    """AdamW's decay of matrices and kernels; biases and norms have none."""

    clip: float = 1.0
    """Largest norm of the gradient."""

    dropout: float = 0.2
    """Dropout of slice features before the sequence model."""

    drop_path: float = 0.0
    """Stochastic depth of the encoder, for backbones that have it."""

    smoothing: float = 0.0
    """Label smoothing."""

    ema_decay: float = 0.995
    """Decay of the weight average that is saved and evaluated. Raise it for long runs, lower for short."""

    flip: float = 0.5
    """Probability of a left-right flip and of a front-back flip (the 13 columns know no sides)."""

    rotate90: float = 0.5
    """Probability of turning a stack by a multiple of 90 degrees."""

    affine: float = 0.5
    """Probability of a small rotation, zoom and shift."""

    gamma: float = 0.5
    """Probability of a gamma and brightness change."""

    coarse_dropout: float = 0.25
    """Probability of blacking out a few rectangles."""

    tta: tuple[str, ...] = ("none", "h", "v", "hv")
    """Flips averaged when predicting, here and in infer.py: none, h, v, hv."""

    precision: str = "auto"
    """fp32, bf16, fp16, or auto (bf16 or fp16 on a GPU, fp32 on a CPU)."""

    workers: int = 1
    """Processes that read and augment stacks."""

    seed: int = 42
    """Start weights, order, slices and augmentation follow from it."""

    resume: str = "auto"
    """auto continues what an interrupted run left in --output, never trains the folds asked for anew."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("recurrent", tuple(RECURRENT)),
            ("pooling", POOLINGS),
            ("precision", PRECISIONS),
            ("resume", RESUME_MODES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("slices", "crop", "hidden", "epochs", "batch", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not self.tta or set(self.tta) - set(FLIPS):
            raise ValueError(f"--tta takes {', '.join(FLIPS)}, got {' '.join(self.tta)}")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be in 0..1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} must be above 0, got {getattr(self, name)}")
        for name in ("workers", "seed", "weight_decay", "warmup_epochs", "encoder_lr_scale"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay must be in 0..1, got {self.ema_decay}")
        if self.encoder is not None and self.pretrained:
            raise ValueError("--pretrained and --encoder both give start weights: choose one")
