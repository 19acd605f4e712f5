"""Options of `train_voco.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.core.config import Doubtful, Execution, FirstWeights, Precision, Tracking, check_range, option_flag
from src.nn.tracking import require_tracker


@dataclass(frozen=True)
class VocoOptions:
    """Options of a pre-training run; the defaults are those of 2D-VoCo v2, but from random weights."""

    data: tuple[Path, ...]
    """Prepared data sets to train on (folders that prepare_data.py wrote); labels are never read."""

    output: Path
    """Folder of the run: last.pt, encoder.safetensors, metrics.csv, patients.csv, config.yaml."""

    doubtful: Doubtful = "skip"
    """Doubtful series, whose images may be wrong (series.csv says why): skip leaves them out, keep trains on
    them like on others."""

    steps: int = 250_000
    """Optimiser steps; also the length of the cosine schedule, so a shorter run anneals faster."""

    backbone: str = "efficientnetv2_rw_s"
    """Any timm backbone (efficientnet_b0; test_resnet on a CPU), or a 3D one: swin_unetr_b, swin_unetr_l,
    swin_unetr_h, resnet10_3d."""

    first_weights: FirstWeights = "none"
    """First weights without --encoder: imagenet (timm's, from its cache or the network), package (ImageNet
    weights of tf_efficientnet_lite0, without a network), none (random), or a file of weights of
    the backbone."""

    encoder: Path | None = None
    """Start from the weights of a file instead of --first-weights: an encoder.safetensors, or a published
    2D-VoCo or VoCo checkpoint."""

    windows: tuple[str, ...] = ("soft",)
    """Windows of the prepared sets to use as input channels, in this order; the published runs use one."""

    set_windows: tuple[str, ...] = ()
    """Windows of each set of --data, one value per set, joined by + (wide or soft+organ); replaces --windows
    if the sets were windowed differently."""

    neighbours: int = 1
    """Number of adjacent slices as channels, odd, as in train_cls.py: the encoder learns from what it is
    later given. Each adds as many channels as there are --windows. 2D backbones only."""

    neighbour_mm: float = 0.0
    """Distance between neighbours in mm; 0 takes the next slices at any distance."""

    repeat: tuple[int, ...] = ()
    """Visits per epoch to each series of a set, one number per set of --data; default 1."""

    canvas: int = 192
    """Side in pixels to which a slice is resized before it is cut into crops; a multiple of --grid."""

    depth: int = 64
    """Slices of the canvas; a multiple of --grid-z."""

    extent: Literal["slab", "whole", "box"] = "slab"
    """Content of the canvas: slab is --depth consecutive slices, whole is the series in --depth even steps,
    box is a random box of --canvas and --depth voxels of --spacing-mm."""

    spacing_mm: float = 1.5
    """Side of a voxel of --extent box."""

    foreground: float = 0.3
    """Crop slices to the smallest rectangle around pixels above this fraction of full grey before they are
    resized; 0 uses the whole image."""

    jitter: float = 0.0
    """Every visit to a series uses a random part of the canvas, of at least 1 - jitter of each side, and
    of each step along the body a random slice; labels stay exact. 0: the base crops of a whole series are the
    same at every visit, as published."""

    grid: int = 3
    """Base crops along each side. More and smaller crops make the task finer and have less context."""

    grid_z: int = 1
    """Base crops along the body. Above 1, position labels also distinguish heights."""

    tile: int = 64
    """Side in pixels to which a crop is resized for the network."""

    slices: int = 32
    """Evenly spaced slices of each crop that are encoded; in 3D, the depth of the input."""

    random_crops: int = 2
    """Random crops per volume. Each costs as much as a base crop and is compared with all of them."""

    crop_flip: float = 0.0
    """Probability of a flip of a single crop along each axis (0.2 in VoCo 3D); labels do not change."""

    crop_rotate90: float = 0.0
    """Probability of a quarter turn of a single crop in its plane (0.2 in VoCo 3D); labels do not change."""

    crop_shift: float = 0.0
    """Probability of a shift of a single crop's grey levels by up to a tenth (0.1 in VoCo 3D)."""

    appearance: float = 0.0
    """Strength, 0 to 1, of a random change of each crop's contrast, brightness, sharpness and noise, so that
    crops must be distinguished by their content, not by equal pixels."""

    objective: Literal["overlap", "softmax", "simclr"] = "overlap"
    """overlap predicts the overlap (published); softmax chooses among the bases by cross-entropy; simclr
    takes two views of half of the crops, and finds the other view of the same crop among all views of the
    batch (give it --projection 128)."""

    view_area: float = 0.3
    """Smallest share of a crop's area in a view of --objective simclr (the paper: 0.08)."""

    directions: Literal["student", "both"] = "student"
    """Of --objective overlap: student compares random crops of the student with bases of the teacher (v2),
    both takes the mean with the reverse, as softmax always does."""

    negatives: Literal["square", "log"] = "square"
    """Loss of crops that do not overlap: l^2 (published) or -log(1 - l) (large-scale VoCo)."""

    inter_volume: bool = True
    """Also compare crops with the bases of another volume of the batch (not in v1 and VoCo 3D)."""

    temperature: float = 0.1
    """Temperature of --objective softmax and simclr: lower values concentrate on the most similar crops."""

    batch: int = 4
    """Volumes per step of all processes, 2 or more with --inter-volume. Raise it if cross_placing stalls."""

    micro_batch: int = 0
    """Images (in 3D: crops) encoded at a time, for small GPUs: less memory, steps a third longer. Exact
    unless the backbone normalises by batch statistics. 0: all at once."""

    projection: int = 2048
    """Width of the projection head, which is discarded after training."""

    shared_backbone: bool = False
    """Use one backbone with two heads for student and teacher (large-scale VoCo) instead of two networks."""

    dropout: float = 0.2
    """Fraction of the student's features dropped before the head; 0 for very short runs."""

    momentum: float = 0.9
    """Momentum of the teacher. Raise it towards 0.99 if losses oscillate or embedding_std falls."""

    final_momentum: float | None = None
    """Momentum at the last step, reached by half a cosine; default: constant momentum."""

    lr: float = 1e-4
    """Peak learning rate. Lower it if the loss turns NaN or cross_placing falls after the warm-up."""

    warmup: float = 0.02
    """Fraction of --steps over which the learning rate rises from 0; 0.05 to 0.1 suits short runs."""

    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW."""

    clip_norm: float = 1.0
    """Maximum gradient norm. Keep it: positives near the ends of the loss have very steep gradients."""

    seed: int = 0
    """Seed; every draw is derived from it, the epoch and the volume's position in the index."""

    precision: Precision = "auto"
    """auto (bf16 on GPUs that support it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16."""

    execution: Execution = "eager"
    """How the networks of a step run: eager launches kernel by kernel, graph replays them as CUDA graphs (one
    process, a GPU, else eager), compile uses torch.compile (minutes to start, needs a C++ compiler)."""

    cache: Path | None = None
    """Folder on a fast disk for canvases, made once from the PNG of each series (docs/cache.md states
    sizes); several runs may share it. Results do not depend on it."""

    track: Tracking = "none"
    """wandb: send metrics to Weights & Biases too. WANDB_MODE=offline keeps them on disk, WANDB_PROJECT names
    the project (default: 2d-voco)."""

    workers: int = 2
    """Processes that read slices; 0 reads in the training process. Results do not depend on it."""

    log_every: int = 50
    """Steps between two printed lines (and rows of metrics.csv)."""

    save_every: int = 1_000
    """Steps between two checkpoints, a multiple of --log-every; last.pt is the newest."""

    keep_every: int = 0
    """Steps between two encoders that are kept, encoder_<step>.safetensors, a multiple of --save-every (the
    paper selected among such); 0 keeps the last one only."""

    picture_every: int = 0
    """Steps between two pictures of crops, labels and predictions in pictures/, a multiple of --log-every;
    0: no pictures."""

    resume: Literal["auto", "never"] | Path = "auto"
    """auto continues the run's last.pt if it exists; never starts from scratch; a path continues it."""

    @property
    def windows_of_sets(self) -> tuple[tuple[str, ...], ...]:
        """Windows of each set of --data, channel by channel."""
        given = tuple(tuple(names.split("+")) for names in self.set_windows)
        return given or (self.windows,) * len(self.data)

    @property
    def source(self) -> FirstWeights:
        """Source of the first weights."""
        return self.encoder or self.first_weights

    @property
    def channels(self) -> int:
        """C, channels of a slice: the windows of each neighbour."""
        return self.neighbours * len(self.windows)

    @property
    def shown_windows(self) -> tuple[str, ...]:
        """Window of each channel of a slice; if the sets differ, all of them, as in `soft|wide`."""
        channels = zip(*self.windows_of_sets, strict=True)
        return tuple("|".join(dict.fromkeys(names)) for names in channels)

    @property
    def crops(self) -> int:
        """K, crops or views of a volume that are encoded."""
        crops = self.random_crops + self.grid_z * self.grid**2
        return crops // 2 * 2 if self.shows_views else crops

    @property
    def shows_views(self) -> bool:
        """Whether samples are pairs of views, not crops with position labels."""
        return self.objective == "simclr"

    def __post_init__(self) -> None:
        require_tracker(self.track)
        check_range(self, "steps", "canvas", "depth", "grid", "grid_z", "tile", "slices", at_least=1)
        check_range(self, "random_crops", "batch", "projection", "log_every", "save_every", at_least=1)
        check_range(self, "neighbours", at_least=1)
        check_range(self, "spacing_mm", "temperature", "lr", "clip_norm", above=0)
        check_range(self, "dropout", "momentum", "warmup", "foreground", "jitter", at_least=0, below=1)
        check_range(self, "crop_flip", "crop_rotate90", "crop_shift", "appearance", at_least=0, at_most=1)
        check_range(self, "workers", "weight_decay", "seed", "micro_batch", "neighbour_mm", at_least=0)
        check_range(self, "keep_every", "picture_every", at_least=0)
        check_range(self, "view_area", above=0, at_most=1)
        if self.final_momentum is not None:
            check_range(self, "final_momentum", at_least=self.momentum, at_most=1)
        if self.neighbours % 2 == 0:
            raise ValueError(
                f"option --neighbours must be odd, the slice itself in the middle, got {self.neighbours}"
            )
        for name in ("data", "windows"):
            if not getattr(self, name):
                raise ValueError(f"option --{name} needs at least one value")
        for name in ("set_windows", "repeat"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.data):
                raise ValueError(
                    f"option {option_flag(name)} needs one value per set of --data ({len(self.data)})"
                )
        if any(count < 1 for count in self.repeat):
            raise ValueError(f"option --repeat must be at least 1, got {min(self.repeat)}")
        channels = {len(windows.split("+")) for windows in self.set_windows}
        if channels - {len(self.windows)}:
            raise ValueError(
                f"option --set-windows must name as many windows per set as --windows ({len(self.windows)})"
            )
        if self.batch < 2 and self.inter_volume:
            raise ValueError(
                f"option --batch must be at least 2 (volumes are compared), got {self.batch}; "
                "or turn --inter-volume off"
            )
        if self.picture_every and self.shows_views:
            raise ValueError("option --picture-every draws placed crops, which --objective simclr has not")
        for name, of in (
            ("canvas", "grid"),
            ("depth", "grid_z"),
            ("save_every", "log_every"),
            ("keep_every", "save_every"),
            ("picture_every", "log_every"),
        ):
            if getattr(self, name) % getattr(self, of):
                raise ValueError(
                    f"option {option_flag(name)} {getattr(self, name)} must be a multiple of "
                    f"{option_flag(of)} {getattr(self, of)}"
                )
