"""Options of `train_seg.py` and `segment.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from src.core.config import Doubtful, Execution, FirstWeights, Precision, Tracking, check_range, option_flag
from src.nn.tracking import require_tracker

Decoder = Literal["unet", "unetplusplus", "fpn", "deeplabv3plus", "linknet", "manet", "pan", "upernet"]
Organ = Literal["liver", "spleen", "left kidney", "right kidney", "bowel"]


@dataclass(frozen=True)
class SegOptions:
    """Options of a segmentation run; by default it trains on labelled series only."""

    data: tuple[Path, ...]
    """Prepared data sets (folders that prepare_data.py wrote), all of one image size. Series with masks are
    labelled, the others unlabelled."""

    output: Path
    """Folder of the run: segmenter.safetensors, last.pt, metrics.csv, split.csv, scores.csv, config.yaml."""

    doubtful: Doubtful = "skip"
    """Doubtful series, whose images may be wrong (series.csv says why): skip leaves them out of training and
    of the scores at the end, keep uses them like others."""

    repeat: tuple[int, ...] = ()
    """Visits per round to each series of a set, one number per set of --data; default 1. It can balance, for
    example, a few real scans against many phantoms."""

    labelled: Path | None = None
    """Table with patient_id and series_id of the labelled series; masks of all others are not used for
    training. By default every series with masks is labelled."""

    leave_out: tuple[str, ...] = ()
    """Patients excluded from training, also as unlabelled series, and scored at the end."""

    validation: float = 0.2
    """Share of the labelled patients to hold out in the same way, drawn with --seed."""

    steps: int = 20_000
    """Optimiser steps; also the length of the cosine schedule."""

    backbones: tuple[str, str] = ("efficientnetv2_rw_s", "resnet34")
    """timm backbones of sub-networks A and B, which must differ to correct each other."""

    decoders: tuple[Decoder, Decoder] = ("unet", "fpn")
    """segmentation_models_pytorch decoders of A and B: unet, unetplusplus, fpn, deeplabv3plus, linknet,
    manet, pan, upernet."""

    decoder_width: float = 1.0
    """Channels of both decoders, relative to the library's defaults. 0.5 halves a step's time on a CPU."""

    first_weights: tuple[FirstWeights, ...] = ("none",)
    """First weights of A and B, or one value for both: imagenet (timm's, from its cache or the network),
    package (ImageNet weights of tf_efficientnet_lite0, without a network), none (random), or a file of
    weights of the backbone."""

    encoder: Path | None = None
    """Start A's backbone from an encoder.safetensors (its name then replaces the first of --backbones) or
    from a published 2D-VoCo checkpoint, instead of its --first-weights."""

    windows: tuple[str, ...] | None = None
    """CT windows of the prepared sets to use, in this order; default: those that --encoder learnt from where
    every set has them, else all that every set has."""

    size: int = 0
    """Side in pixels to which larger slices are reduced, here and where the networks segment; 0: they stay as
    prepared. Organs of 512 px slices need no more than 256, in a quarter of the time."""

    slices: int = 3
    """Adjacent slices in the input, an odd number; the middle one is segmented. Each slice adds as many input
    channels as there are --windows."""

    batch: int = 8
    """Labelled slices per step, over all processes."""

    unlabelled_batch: int = 8
    """Unlabelled slices per step, over all processes, if --pseudo or --contrast is above 0."""

    verification: float = 0.0
    """Weight of the squared error to the label where A and B confidently disagree (paper: 0.5)."""

    confidence: float = 0.6
    """Minimum class probability for which --verification counts a sub-network as confident."""

    pseudo: float = 0.0
    """Final weight of the cross-entropy to the other sub-network's pseudo-labels on unlabelled slices."""

    unreliable: float = 0.05
    """Initial share of unreliable pixels (those of highest entropy in A and in B); falls to 0. Organs are a
    tenth of all pixels: a large share would exclude them."""

    mix: float = 1.0
    """Probability that an unlabelled slice receives a rectangle, with its targets, from another slice of the
    batch."""

    contrast: float = 0.0
    """Final weight of the contrastive loss between unreliable pixels and class prototypes (paper:
    0.1)."""

    temperature: float = 0.1
    """Temperature of --contrast; lower values concentrate on the nearest prototypes."""

    embedding: int = 32
    """Width of the pixel features that --contrast compares; the layer is discarded after training."""

    ramp: float = 1.0
    """Share of --steps over which --pseudo and --contrast rise from near 0 to their weights."""

    flip: float = 0.0
    """Probability of a left-right flip, which swaps the labels of left and right kidney. Real scans are never
    flipped: the liver is always on one side."""

    affine: float = 0.8
    """Probability of a small rotation, zoom and shift of slice and mask."""

    appearance: float = 0.5
    """Strength, 0 to 1, of changes of contrast, sharpness and noise, and of blacked-out rectangles; drawn
    separately for A and B."""

    lr: float = 1e-3
    """Peak learning rate of AdamW. Lower it if losses jump."""

    warmup: float = 0.05
    """Share of --steps over which the learning rate rises from 0."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""

    clip_norm: float = 1.0
    """Maximum gradient norm."""

    ema_decay: float = 0.995
    """Decay of the moving average (EMA) of the weights, which is scored and exported."""

    seed: int = 0
    """Seed of the initial weights and of every random draw."""

    execution: Execution = "eager"
    """How the networks of a step run: eager launches kernel by kernel, graph replays them as CUDA graphs (one
    process, a GPU, else eager), compile uses torch.compile (minutes to start, needs a C++ compiler)."""

    precision: Precision = "auto"
    """auto (bf16 on GPUs that support it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16."""

    cache: Path | None = None
    """Folder on a fast disk for raw copies of the slices, if decoding PNG slows down training."""

    track: Tracking = "none"
    """wandb: send metrics to Weights & Biases too. WANDB_MODE=offline keeps them on disk, WANDB_PROJECT names
    the project (default: 2d-voco)."""

    workers: int = 2
    """Processes that read slices; 0 reads in the training process. Results do not depend on it."""

    log_every: int = 50
    """Steps between two printed lines (and rows of metrics.csv)."""

    save_every: int = 500
    """Steps between two checkpoints, a multiple of --log-every; last.pt is the newest."""

    score_every: int = 0
    """Steps between two scores of the held-out patients, a multiple of --log-every; 0: only at the end."""

    organs: tuple[Organ, ...] = get_args(Organ)
    """Organs to score; fewer if the masks of the held-out patients lack some."""

    resume: Literal["auto", "never"] | Path = "auto"
    """auto continues the run's last.pt if it exists; never starts from scratch; a path continues it."""

    @property
    def sources(self) -> tuple[FirstWeights, FirstWeights]:
        """Source of the first weights of A and of B."""
        first, second = self.first_weights[0], self.first_weights[-1]
        return self.encoder or first, second

    def reduced(self, size: int) -> int:
        """Return the side of the networks' input for prepared slices of `size` pixels."""
        return min(size, self.size or size)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether any loss term uses unlabelled slices."""
        return self.pseudo > 0 or self.contrast > 0

    def __post_init__(self) -> None:
        require_tracker(self.track)
        check_range(self, "steps", "batch", "unlabelled_batch", "embedding", "slices", at_least=1)
        check_range(self, "log_every", "save_every", at_least=1)
        check_range(self, "temperature", "decoder_width", "lr", "clip_norm", above=0)
        check_range(self, "ramp", above=0, at_most=1)
        check_range(
            self, "validation", "unreliable", "confidence", "warmup", "ema_decay", at_least=0, below=1
        )
        check_range(self, "flip", "affine", "appearance", "mix", at_least=0, at_most=1)
        check_range(self, "verification", "pseudo", "contrast", "weight_decay", at_least=0)
        check_range(self, "seed", "workers", "score_every", "size", at_least=0)
        for name in ("data", "windows", "organs"):
            if getattr(self, name) == ():
                raise ValueError(f"option --{name} needs at least one value")
        if self.repeat and len(self.repeat) != len(self.data):
            raise ValueError(f"option --repeat needs one value per set of --data ({len(self.data)})")
        if any(count < 1 for count in self.repeat):
            raise ValueError(f"option --repeat must be at least 1, got {min(self.repeat)}")
        if self.slices % 2 == 0:
            raise ValueError(f"option --slices must be odd, so that one is in the middle, got {self.slices}")
        for name in ("backbones", "decoders"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"option --{name} takes two values, one per sub-network")
        if len(self.first_weights) not in (1, 2):
            raise ValueError("option --first-weights takes two values, one per sub-network, or one for both")
        for name in ("save_every", "score_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"option {option_flag(name)} {getattr(self, name)} must be a multiple of --log-every "
                    f"{self.log_every}"
                )


@dataclass(frozen=True)
class SegmentOptions:
    """Options of `segment.py`."""

    model: Path
    """Run folder of train_seg.py, or its segmenter.safetensors."""

    data: Path
    """Prepared data set whose series are segmented."""

    output: Path | None = None
    """Folder for masks and tables; default: predicted_masks in --data."""

    series: Path | None = None
    """Table with patient_id and series_id of the series to segment; default: all."""

    batch: int = 16
    """Slices per forward pass; higher values are faster on a GPU and need more memory."""

    spacing_mm: float = 0.0
    """About the distance between the slices that the networks see; masks between two are interpolated.
    0: they see all. 4 takes a quarter of the time for slices of 1 mm."""

    workers: int = 1
    """Processes that read slices; 0 reads in this process between forward passes."""

    precision: Precision = "auto"
    """auto (bf16 on GPUs that support it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16."""

    preview: bool = False
    """Write a picture of every series to preview/, with true organs above predicted ones."""

    overwrite: bool = False
    """Delete the masks and tables in the output and start from scratch."""

    def __post_init__(self) -> None:
        check_range(self, "batch", at_least=1)
        check_range(self, "workers", "spacing_mm", at_least=0)
