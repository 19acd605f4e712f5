"""Options of `train_voco.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VocoOptions:
    """Options of a pre-training run."""

    data: tuple[str, ...]
    """Prepared data sets to learn from (folders that prepare_data.py wrote); labels are never read."""

    output: str
    """Folder of the run: last.pt, encoder.safetensors, metrics.csv, patients.csv, config.yaml."""

    steps: int = 250_000
    """Optimiser steps; the cosine schedule ends there, so a shorter run anneals faster."""

    backbone: str = "efficientnetv2_rw_s"
    """Any timm backbone, for example efficientnet_b0, or mobilenetv3_small_050 on a CPU."""

    windows: tuple[str, ...] = ("soft",)
    """Windows of the prepared set to use as input channels, in this order; the published runs use one."""

    canvas: int = 192
    """Side in pixels to which a slice is resized before it is cut; it must be a multiple of --grid."""

    grid: int = 3
    """Base crops along each side. More and smaller crops make the task finer and show less context."""

    random_crops: int = 2
    """Random crops a volume. Each costs as much as a base crop and adds a comparison with all of them."""

    slab_slices: int = 64
    """Consecutive slices of the random slab of a sample; a shorter series gives all it has."""

    slices: int = 32
    """Evenly spaced slices used of the slab. Halve it to halve time and memory; embeddings get noisier."""

    batch: int = 4
    """Volumes a step, at least 2 (each is compared with another). Raise it if cross_placing stalls."""

    projection: int = 2048
    """Width of the projection head, which is thrown away after training."""

    dropout: float = 0.2
    """Share of the student's features dropped before the head; 0 for very short runs."""

    momentum: float = 0.9
    """Of the teacher's moving average. Raise it towards 0.99 if losses oscillate or embedding_std falls."""

    lr: float = 1e-4
    """Peak learning rate. Lower it if the loss turns NaN or cross_placing falls after the warm-up."""

    warmup: float = 0.02
    """Share of --steps over which the learning rate rises from 0; 0.05 to 0.1 suits short runs."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

    clip_norm: float = 1.0
    """Largest gradient norm. Positives near the ends of the loss have very steep gradients: keep it."""

    seed: int = 0
    """Every draw follows from it, the epoch and the volume's place in the index."""

    precision: str = "auto"
    """auto (bf16 on GPUs that have it, fp16 on other GPUs, fp32 on CPU), fp32, bf16 or fp16."""

    workers: int = 2
    """Processes that read slices; 0 reads in the training process. Results do not depend on it."""

    log_every: int = 50
    """Steps between two printed lines (and rows of metrics.csv)."""

    save_every: int = 1_000
    """Steps between two checkpoints, a multiple of --log-every."""

    resume: str = "auto"
    """auto continues the run's last.pt where there is one, never starts anew, a path continues that file."""

    def __post_init__(self) -> None:
        positive = ("steps", "canvas", "grid", "random_crops", "slab_slices", "slices", "projection")
        for name in (*positive, "log_every", "save_every", "lr", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"option --{name.replace('_', '-')} must be above 0, got {getattr(self, name)}"
                )
        if not self.data or not self.windows:
            raise ValueError("options --data and --windows need at least one value each")
        if self.canvas % self.grid:
            raise ValueError(f"option --canvas {self.canvas} must be a multiple of --grid {self.grid}")
        if self.batch < 2:
            raise ValueError(f"option --batch must be at least 2 (volumes are compared), got {self.batch}")
        for name in ("dropout", "momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"option --{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.workers < 0 or self.weight_decay < 0 or self.seed < 0:
            raise ValueError("options --workers, --weight-decay and --seed must be at least 0")
        if self.save_every % self.log_every:
            raise ValueError(
                f"option --save-every {self.save_every} must be a multiple of --log-every {self.log_every}"
            )
