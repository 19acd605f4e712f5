"""Options of `train_cls.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.core.config import Precision, check_range
from src.core.targets import TARGETS

Target = Literal["bowel", "extravasation", "kidney", "liver", "spleen"]
Region = Literal["body", "organs", "liver", "spleen", "kidneys", "bowel", "own"]
SequenceModel = Literal["lstm", "gru", "transformer", "none"]
Pooling = Literal["max", "mean", "attention"]
Flip = Literal["none", "h", "v", "hv"]


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

    mode: Literal["multi", "single"] = "multi"
    """multi: one network predicts all targets. single: one network per target, from its labels alone."""

    targets: tuple[Target, ...] = tuple(TARGETS)
    """Targets to predict. In oof.csv of a run of fewer targets, the others have the prior."""

    windows: tuple[str, ...] | None = None
    """CT windows to use, of those prepared; all of them when absent."""

    slices: int = 48
    """Slices per series. More find small injuries, and cost time in proportion."""

    spacing_mm: float = 0.0
    """Distance of the slices; 0 spreads them evenly over the z range."""

    z_range: Region = "body"
    """Region whose slices are used; own, in single mode, is that of the target. All but body need masks
    (segment.py)."""

    in_plane: Region = "body"
    """Region of a slice: body is a crop of the prepared slice, random in training and central in prediction;
    the other regions, as in --z-range, are cut out and resized."""

    crop: int = 192
    """Side of the network's input in pixels."""

    neighbours: int = 1
    """Adjacent slices as channels, an odd number."""

    neighbour_mm: float = 0.0
    """Distance of the neighbours; 0 takes the next slices at any distance."""

    masks: Literal["none", "any", "each"] = "none"
    """Organ masks as channels: any is one of all organs, each is one of liver, spleen, kidneys and bowel."""

    masks_from: Literal["auto", "true", "predicted"] = "auto"
    """true, predicted (segment.py), or auto: predicted ones where they exist."""

    sequence: SequenceModel = "lstm"
    """Sequence model over the slices; lstm and gru are bidirectional."""

    hidden: int = 128
    """Width of the sequence model, for each direction."""

    pooling: Pooling = "max"
    """From slices to the series."""

    epochs: int = 20
    """Passes over the training folds. The schedule ends with the last."""

    batch: int = 4
    """Series per batch, shared by the processes of torchrun. Memory grows with batch times slices."""

    accumulation: int = 1
    """Batches per optimiser step: raise it when a larger batch does not fit into memory."""

    loss: Literal["weighted", "metric", "plain"] = "weighted"
    """weighted: cross-entropy with the metric's weights. metric: any injury as well, so the score itself.
    plain: no weights; give --reweigh with it."""

    reweigh: bool = False
    """Multiply probabilities by the metric's class weights when predicting; for --loss plain alone."""

    slice_loss: float = 0.0
    """Weight of the loss of single slices, whose targets come from the patient's labels and organ areas."""

    image_labels: Path | None = None
    """image_level_labels.csv: slices with extravasation and bowel injuries, for --slice-loss."""

    organ_loss: float = 0.0
    """Weight of organ segmentation as an auxiliary task, by a decoder that is not saved."""

    organ_slices: int = 8
    """Slices of a stack that are segmented."""

    lr: float = 1.25e-4
    """Peak learning rate of AdamW. Raise it for a small backbone from scratch, lower it if the loss jumps."""

    encoder_lr_scale: float = 1.0
    """Learning rate of the encoder as a share of --lr. Below 1 it keeps more of its pre-training."""

    layer_decay: float = 1.0
    """Learning rate of each layer of the encoder as a share of the next layer's."""

    class_balance: float = 0.0
    """Share of the series that are drawn by injury (of the targets), each injury equally often. Series that
    are drawn more often have less weight each time, so that probabilities stay calibrated."""

    mixup: float = 0.0
    """Probability of MixUp of two stacks."""

    cutmix: float = 0.0
    """Probability of CutMix, a rectangle of one stack in another."""

    warmup_epochs: float = 1.0
    """Epochs of linear warm-up before the cosine."""

    weight_decay: float = 0.01
    """Weight decay of AdamW, for matrices and kernels; biases and norms have none."""

    clip: float = 1.0
    """Largest norm of the gradient."""

    dropout: float = 0.2
    """Dropout of slice features before the sequence model."""

    drop_path: float = 0.0
    """Stochastic depth of the encoder, for backbones that have it."""

    smoothing: float = 0.0
    """Label smoothing."""

    ema_decay: float = 0.995
    """Decay of the weight average that is saved and evaluated. Raise it for long runs, lower it for short."""

    flip: float = 0.5
    """Probability of a left-right flip and of a front-back flip (the 13 columns have no sides)."""

    rotate90: float = 0.5
    """Probability of a rotation by a multiple of 90 degrees."""

    affine: float = 0.5
    """Probability of a small rotation, zoom and shift."""

    gamma: float = 0.5
    """Probability of a gamma and brightness change."""

    coarse_dropout: float = 0.25
    """Probability of blacking out a few rectangles."""

    tta: tuple[Flip, ...] = ("none", "h", "v", "hv")
    """Flips averaged in prediction, here and in infer.py: none, h (left-right), v (front-back), hv."""

    offsets: int = 1
    """Stacks averaged in prediction, each of other slices."""

    precision: Precision = "auto"
    """auto is bf16 or fp16 on a GPU, fp32 on a CPU."""

    cache: Path | None = None
    """Folder on a fast disk for raw copies of the slices, where decoding PNG slows training down."""

    workers: int = 1
    """Processes that read and augment stacks."""

    seed: int = 42
    """Start weights, order, slices and augmentation follow from it."""

    resume: Literal["auto", "never"] = "auto"
    """auto continues an interrupted run in --output; never trains the chosen folds from scratch."""

    def __post_init__(self) -> None:
        counts = ("slices", "crop", "hidden", "epochs", "batch", "accumulation", "organ_slices", "offsets")
        check_range(self, *counts, "neighbours", at_least=1)
        check_range(self, "lr", "clip", above=0)
        check_range(self, "workers", "seed", "weight_decay", "warmup_epochs", "encoder_lr_scale", at_least=0)
        check_range(self, "spacing_mm", "neighbour_mm", "slice_loss", "organ_loss", at_least=0)
        changes = ("flip", "rotate90", "affine", "gamma", "coarse_dropout", "mixup", "cutmix")
        check_range(self, *changes, "class_balance", at_least=0, at_most=1)
        check_range(self, "dropout", "drop_path", "smoothing", at_least=0, at_most=1)
        check_range(self, "ema_decay", at_least=0, below=1)
        check_range(self, "layer_decay", above=0, at_most=1)
        if self.neighbours % 2 == 0:
            raise ValueError(
                f"option --neighbours must be odd, the slice itself in the middle, got {self.neighbours}"
            )
        for name in ("tta", "targets"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"option --{name} takes each value once at most, got {' '.join(values)}")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.encoder is not None and self.pretrained:
            raise ValueError("--pretrained and --encoder both give start weights: choose one")
        if self.reweigh and self.loss != "plain":
            raise ValueError(
                f"--reweigh would weigh the classes twice, --loss {self.loss} has the metric's weights "
                "already: give --loss plain with it, or leave it out"
            )
        if self.loss == "metric" and (self.mode == "single" or len(self.targets) < len(TARGETS)):
            raise ValueError(
                "--loss metric takes any injury from all targets: it needs --mode multi and all --targets"
            )
        if "own" in (self.z_range, self.in_plane) and self.mode != "single":
            raise ValueError("a target's own region (--z-range or --in-plane own) needs --mode single")
        if self.image_labels is not None and not self.slice_loss:
            raise ValueError("--image-labels are used by --slice-loss: give it a weight")

    @property
    def needs_organs(self) -> bool:
        """Whether masks are required: by the view, by the organ loss, or by slice targets without marks."""
        regions = {self.z_range, self.in_plane} != {"body"}
        unmarked = self.slice_loss > 0 and self.image_labels is None
        return regions or self.masks != "none" or self.organ_loss > 0 or unmarked
