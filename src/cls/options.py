"""Options of `train_cls.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.core.config import Doubtful, Execution, FirstWeights, Precision, Tracking, check_range
from src.core.targets import TARGETS
from src.nn.tracking import require_tracker

Target = Literal["bowel", "extravasation", "kidney", "liver", "spleen"]
Region = Literal["body", "organs", "liver", "spleen", "kidneys", "bowel", "each_kidney", "own"]
SequenceModel = Literal["lstm", "gru", "transformer", "none"]
Pooling = Literal["max", "mean", "attention"]
Flip = Literal["none", "h", "v", "hv"]


@dataclass(frozen=True)
class ClassifierOptions:
    """Options of a 5-fold run. Defaults are the published CNN-LSTM setting where the paper states one."""

    data: Path
    """Prepared data set (a folder that prepare_data.py wrote)."""

    labels: Path
    """Patient labels: train.csv of the competition."""

    folds: Path
    """Folds: a table patient_id, fold (written by python -m src.data.folds)."""

    output: Path
    """Folder of the run: fold0/ ... fold4/, oof_series.csv, oof.csv, config.yaml."""

    doubtful: Doubtful = "skip"
    """Doubtful series, whose images may be wrong (series.csv says why): skip leaves them out of training,
    keep trains on them like on others. They are predicted in either case."""

    fold: tuple[str, ...] | None = None
    """Folds to train, as numbers; default: all of them. Finished folds are not trained again. all, or all0
    all1 ...: networks of all patients, with other seeds. infer.py averages them with those of the folds; they
    have no out-of-fold predictions."""

    encoder: Path | None = None
    """encoder.safetensors of train_voco.py; replaces --backbone and --first-weights."""

    backbone: str = "efficientnet_b0"
    """Any timm backbone, if --encoder is not given."""

    first_weights: FirstWeights = "none"
    """First weights without --encoder: imagenet (timm's, from its cache or the network), package (ImageNet
    weights of tf_efficientnet_lite0, without a network), none (random), or a file of weights of
    the backbone."""

    mode: Literal["multi", "single"] = "multi"
    """multi: one network predicts all targets. single: one network per target, from its labels alone."""

    targets: tuple[Target, ...] = tuple(TARGETS)
    """Targets to predict. The other targets get the prior in oof.csv."""

    windows: tuple[str, ...] | None = None
    """CT windows to use, out of the prepared ones; default: those that --encoder learnt from where all of
    them are prepared, else all."""

    slices: int = 48
    """Slices per series. More slices help to find small injuries; the time grows in proportion."""

    spacing_mm: float = 0.0
    """Distance between slices in mm; 0 spreads them evenly over the z range."""

    z_range: Region = "body"
    """Region whose slices are used; own, in single mode, is the target's region. All but body need masks
    (segment.py). each_kidney, which is the own region of the kidney target: half of the slices show the left
    kidney and half the right one, each in its own square, with the same --in-plane and no --spacing-mm."""

    in_plane: Region = "body"
    """In-plane region: body crops the prepared slice, randomly in training and at the centre in prediction;
    the other regions, as in --z-range, are cropped and resized."""

    crop: int = 192
    """Side of the network's input in pixels."""

    neighbours: int | None = None
    """Number of adjacent slices as channels, odd; default: as many as --encoder learnt from, else 1."""

    neighbour_mm: float | None = None
    """Distance between neighbours in mm; 0 takes the next slices at any distance. Default: that of --encoder
    if it learnt from as many neighbours, else 0."""

    masks: Literal["none", "any", "each"] = "none"
    """Organ masks as channels: any is one of all organs, each is one of liver, spleen, kidneys and bowel."""

    masks_from: Literal["auto", "true", "predicted"] = "auto"
    """Source of masks: true, predicted (segment.py), or auto: predicted ones where they exist."""

    sequence: SequenceModel = "lstm"
    """Sequence model over the slices; lstm and gru are bidirectional."""

    hidden: int = 128
    """Width of the sequence model per direction."""

    pooling: Pooling = "max"
    """Pooling of the slices of a series."""

    epochs: int = 20
    """Passes over the training folds; also the length of the schedule."""

    batch: int = 4
    """Series per batch, over all processes of torchrun. Memory grows with batch times slices."""

    accumulation: int = 1
    """Batches per optimiser step: increase it if a larger batch does not fit into memory."""

    micro_batch: int = 0
    """Slices encoded at a time in training, and once more for their gradient (gradient checkpointing), for
    small GPUs: less memory, steps a third longer. Exact unless the backbone normalises by batch statistics.
    0: all at once."""

    loss: Literal["weighted", "metric", "plain"] = "weighted"
    """weighted: cross-entropy with the metric's weights. metric: adds any injury, so equals the score.
    plain: no weights; combine with --reweigh."""

    reweigh: bool = False
    """Multiply probabilities by the metric's class weights when predicting; only for --loss plain."""

    slice_loss: float = 0.0
    """Weight of the slice loss, whose targets come from the patient's labels and organ areas."""

    image_labels: Path | None = None
    """image_level_labels.csv: slices with extravasation and bowel injuries, for --slice-loss."""

    organ_loss: float = 0.0
    """Weight of organ segmentation as an auxiliary task, by a decoder that is not saved."""

    organ_slices: int = 8
    """Number of slices per stack that are segmented."""

    lr: float = 1.25e-4
    """Peak learning rate of AdamW. Raise it for a small backbone from scratch, lower it if the loss jumps."""

    encoder_lr_scale: float = 1.0
    """Learning rate of the encoder relative to --lr. Values below 1 keep more of its pre-training."""

    layer_decay: float = 1.0
    """Learning rate of each encoder layer relative to the next layer's."""

    class_balance: float = 0.0
    """Fraction of the series drawn by injury (of the targets), each injury equally often. Series that are
    drawn more often get less weight each time, so that probabilities stay calibrated."""

    mixup: float = 0.0
    """Probability of MixUp of two stacks."""

    cutmix: float = 0.0
    """Probability of CutMix, which pastes a rectangle of one stack into another."""

    warmup_epochs: float = 1.0
    """Epochs of linear warm-up before the cosine schedule."""

    weight_decay: float = 0.01
    """Weight decay of AdamW, for matrices and kernels; biases and norms have none."""

    clip: float = 1.0
    """Maximum norm of the gradient."""

    dropout: float = 0.2
    """Dropout of slice features before the sequence model."""

    drop_path: float = 0.0
    """Stochastic depth of the encoder, for backbones that have it."""

    smoothing: float = 0.0
    """Label smoothing."""

    validate_every: int = 0
    """Epochs between two scores of the held-out fold, in metrics.csv; 0 scores it at the end only."""

    keep: Literal["last", "best"] = "last"
    """Weights to keep: those of the last epoch, or of the one with the best score by --validate-every. best
    makes out-of-fold scores better than those of new patients; the tables say so."""

    ema_decay: float = 0.995
    """Decay of the moving average (EMA) of the weights, which is evaluated; higher for long runs."""

    flip: float = 0.5
    """Probability of a left-right flip and of a front-back flip (the 13 columns have no left and right)."""

    rotate90: float = 0.5
    """Probability of a rotation by a multiple of 90 degrees."""

    affine: float = 0.5
    """Probability of a small rotation, zoom and shift."""

    gamma: float = 0.5
    """Probability of a gamma change, and of a contrast and brightness change."""

    coarse_dropout: float = 0.25
    """Probability of blacking out a few rectangles."""

    tta: tuple[Flip, ...] = ("none", "h", "v", "hv")
    """Flips averaged in prediction, here and in infer.py: none, h (left-right), v (front-back), hv."""

    offsets: int = 1
    """Number of stacks averaged in prediction, each with other slices."""

    execution: Execution = "eager"
    """How the networks of a step run: eager launches kernel by kernel, graph replays them as CUDA graphs (one
    process, a GPU, else eager), compile uses torch.compile (minutes to start, needs a C++ compiler)."""

    precision: Precision = "auto"
    """Precision; auto is bf16 or fp16 on a GPU, fp32 on a CPU."""

    cache: Path | None = None
    """Folder on a fast disk for raw copies of the slices, if decoding PNG slows down training."""

    track: Tracking = "none"
    """wandb: send metrics to Weights & Biases too. WANDB_MODE=offline keeps them on disk, WANDB_PROJECT names
    the project (default: 2d-voco)."""

    workers: int = 1
    """Processes that read and augment stacks."""

    seed: int = 42
    """Seed of initial weights, order, slices and augmentation."""

    resume: Literal["auto", "never"] = "auto"
    """auto continues an interrupted run in --output; never trains the chosen folds from scratch."""

    @property
    def source(self) -> FirstWeights:
        """Source of the first weights."""
        return self.encoder or self.first_weights

    def __post_init__(self) -> None:
        require_tracker(self.track)
        counts = ("slices", "crop", "hidden", "epochs", "batch", "accumulation", "organ_slices", "offsets")
        check_range(self, *counts, at_least=1)
        check_range(self, "lr", "clip", above=0)
        check_range(self, "workers", "seed", "weight_decay", "warmup_epochs", "encoder_lr_scale", at_least=0)
        check_range(self, "validate_every", at_least=0)
        check_range(self, "spacing_mm", "slice_loss", "organ_loss", "micro_batch", at_least=0)
        if self.neighbour_mm is not None:
            check_range(self, "neighbour_mm", at_least=0)
        changes = ("flip", "rotate90", "affine", "gamma", "coarse_dropout", "mixup", "cutmix")
        check_range(self, *changes, "class_balance", at_least=0, at_most=1)
        check_range(self, "dropout", "drop_path", "smoothing", at_least=0, at_most=1)
        check_range(self, "ema_decay", at_least=0, below=1)
        check_range(self, "layer_decay", above=0, at_most=1)
        if self.neighbours is not None:
            check_range(self, "neighbours", at_least=1)
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
        if self.reweigh and self.loss != "plain":
            raise ValueError(
                f"--reweigh would weigh the classes twice, --loss {self.loss} has the metric's weights "
                "already: give --loss plain with it, or leave it out"
            )
        if self.keep == "best" and not self.validate_every:
            raise ValueError(
                "--keep best takes the best of the scores by --validate-every: give it the epochs"
            )
        if self.loss == "metric" and (self.mode == "single" or len(self.targets) < len(TARGETS)):
            raise ValueError(
                "--loss metric takes any injury from all targets: it needs --mode multi and all --targets"
            )
        if "own" in (self.z_range, self.in_plane) and self.mode != "single":
            raise ValueError("a target's own region (--z-range or --in-plane own) needs --mode single")
        if (self.z_range == "each_kidney") != (self.in_plane == "each_kidney"):
            raise ValueError("each_kidney must be the region of both --z-range and --in-plane")
        if self.spacing_mm and self.z_range == "each_kidney":
            raise ValueError("--spacing-mm takes slices of one range, and each_kidney has two: give 0")
        if self.image_labels is not None and not self.slice_loss:
            raise ValueError("--image-labels are used by --slice-loss: give it a weight")

    @property
    def needs_organs(self) -> bool:
        """Whether masks are required: by the view, the organ loss, or slice targets without image labels."""
        regions = {self.z_range, self.in_plane} != {"body"}
        unmarked = self.slice_loss > 0 and self.image_labels is None
        return regions or self.masks != "none" or self.organ_loss > 0 or unmarked
