"""Student and teacher: a backbone over crops, one embedding per crop.

2D-VoCo (arXiv 2601.14593) encodes a crop slice by slice and averages the features; VoCo (arXiv 2402.17300)
encodes the crop as a volume. Both project the result. The teacher is a moving average (EMA) of the whole
student, or (large-scale VoCo, arXiv 2410.09890) of its head alone, on the student's backbone. Only the
backbone is kept after pre-training.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.core.errors import UserError
from src.nn.encoder import check_input_size, create_encoder, default_greys, encoder_width
from src.nn.encoder3d import VOLUME_BACKBONES, check_sides, create_volume_encoder
from src.nn.first_weights import FirstWeights, load_first_weights
from src.nn.micro_batch import encode_in_parts, require_enough_statistics
from src.voco.options import VocoOptions


class ProjectionHead(nn.Module):
    """Linear, LayerNorm, ReLU, twice, then Linear: (M, width) pooled features -> (M, projection).

    Each row is normalised separately. BatchNorm over `(B, N, D)` would treat the crop's position in the batch
    as the channel and give each position its own scale and shift, so that crops could be distinguished
    without their content. LayerNorm also makes a volume's loss independent of how a batch is split over
    processes.
    """

    def __init__(self, width: int, projection: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, projection),
            nn.LayerNorm(projection),
            nn.ReLU(),
            nn.Linear(projection, projection),
            nn.LayerNorm(projection),
            nn.ReLU(),
            nn.Linear(projection, projection),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class MlpHead(nn.Module):
    """SimCLR's head: Linear, BatchNorm over all views, ReLU, Linear; (..., width) -> (..., projection)."""

    def __init__(self, width: int, hidden: int, projection: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, projection)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.flatten(0, -2)).unflatten(0, features.shape[:-1])


class VocoNet(nn.Module):
    """Backbone on single slices, mean over the slices of a crop, dropout, projection head.

    Args:
        encoder: maps images (M, C, H, W) to pooled features (M, width), for any H and W.
        head: maps features (B, K, width) to embeddings (B, K, projection).
        dropout: share of pooled features dropped in training.
        mean, std: grey-level mean and standard deviation of each window, on the scale 0 to 1; a slice and its
            neighbours share them.
        micro_batch: images (of a `VolumeVocoNet`: crops) encoded at a time, 0 for all at once.
    """

    memory_format = torch.channels_last
    """the fast memory order for convolutions on GPUs and CPUs; tiles arrive in it"""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        *,
        dropout: float,
        mean: Sequence[float],
        std: Sequence[float],
        micro_batch: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder.to(memory_format=self.memory_format)
        self.dropout = nn.Dropout(dropout)
        self.head = head
        self.micro_batch = micro_batch
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Embed crops.

        Args:
            tiles: uint8 (B, K, T, H, W, C), K crops per volume over T slices.

        Returns:
            Embeddings (B, K, projection), and the features before dropout (B, K, width).
        """
        images = self.arrange(tiles)
        features = encode_in_parts(self._encode, images, self.micro_batch, self.encoder)  # (M, width)
        features = features.unflatten(0, (*tiles.shape[:2], -1)).mean(dim=2)  # (B, K, width)
        return self.head(self.dropout(features)), features

    @torch.no_grad()
    def embed(self, tiles: Tensor) -> Tensor:
        """Embed crops by a teacher: (B, K, T, H, W, C) -> (B, K, projection), without a graph."""
        return self(tiles)[0]

    def input_shape(self, *tiles: int) -> tuple[int, ...]:
        """Return the shape of the encoder's input for tiles of a shape (B, K, T, H, W, C)."""
        return tuple(self.arrange(torch.empty(tiles, device="meta")).shape)

    def arrange(self, tiles: Tensor) -> Tensor:
        """Arrange crops as encoder input: (B, K, T, H, W, C) -> (B*K*T, C, H, W), channels last in memory."""
        return tiles.flatten(0, 2).permute(0, 3, 1, 2)

    def normalise(self, images: Tensor) -> Tensor:
        """Scale uint8 images (M, C, ...), as `arrange` gives them, to the float32 input of the encoder."""
        shape = (-1, *(1,) * (images.ndim - 2))  # channels first
        neighbours = images.shape[1] // len(self.mean)
        mean, std = (each.repeat(neighbours).view(shape) for each in (self.mean, self.std))
        return images.to(mean.dtype).div_(255).sub_(mean).div_(std)

    def _encode(self, images: Tensor) -> Tensor:
        return self.encoder(self.normalise(images))  # (M, width)


class VolumeVocoNet(VocoNet):
    """Backbone on crops as volumes, dropout, projection head; the encoder maps (M, C, T, H, W)."""

    memory_format = torch.channels_last_3d

    def arrange(self, tiles: Tensor) -> Tensor:
        """Arrange crops as encoder input: (B, K, T, H, W, C) -> (B*K, C, T, H, W)."""
        return tiles.flatten(0, 1).permute(0, 4, 1, 2, 3)


class TeacherHead(nn.Module):
    """A teacher on the student's backbone: the moving average (EMA) of the student's head alone."""

    def __init__(self, student: VocoNet) -> None:
        super().__init__()
        self.head = copy.deepcopy(student.head)  # with the student's parameter names

    @torch.no_grad()
    def embed(self, student_features: Tensor) -> Tensor:
        """Embed features of the student's backbone (B, K, width) -> (B, K, projection), without a graph."""
        return self.head(student_features)


Teacher = VocoNet | TeacherHead


def build_network(options: VocoOptions) -> VocoNet:
    """Build the student of a run, 2D or 3D depending on the backbone, of random weights.

    Raises:
        UserError: no such backbone, or unsupported sizes.
    """
    channels = options.channels
    if options.backbone in VOLUME_BACKBONES:
        if options.neighbours > 1:
            raise UserError(f"option --neighbours: {options.backbone} takes crops as volumes; leave it at 1")
        kind, encoder = VolumeVocoNet, create_volume_encoder(options.backbone, channels)
        check_sides(f"backbone {options.backbone}", encoder, (options.slices, options.tile, options.tile))
    else:
        kind, encoder = VocoNet, create_encoder(options.backbone, channels, options.tile)
        check_input_size(encoder, channels, options.tile)
        encoder.train()
    require_enough_statistics(encoder, options.backbone, options.micro_batch)
    mean, std = default_greys(options.windows)
    width = encoder_width(encoder)
    if options.objective == "simclr":
        head = MlpHead(width, width, options.projection)
    else:
        head = ProjectionHead(width, options.projection)
    return kind(
        encoder,
        head,
        dropout=options.dropout,
        mean=mean,
        std=std,
        micro_batch=options.micro_batch,
    )


def load_start(network: VocoNet, options: VocoOptions) -> FirstWeights:
    """Load `--encoder` or `--first-weights` into a new network, with the grey levels of their training.

    Raises:
        UserError: the weights cannot be loaded.
    """
    first = load_first_weights(network.encoder, options.source, options.windows, options.neighbours)
    network.mean.copy_(torch.tensor(first.mean))
    network.std.copy_(torch.tensor(first.std))
    return first


def make_teacher(student: VocoNet, shared_backbone: bool) -> Teacher:
    """Copy the student (backbone, head and buffers), or its head alone, without gradients.

    The teacher normalises by batch statistics, like the student: running averages of the first steps are far
    from any batch, so that student and teacher would not be comparable. Dropout and stochastic depth are off,
    because a target should have no noise. Its buffers change only by `TeacherUpdate`, not in its forward
    pass.
    """
    if shared_backbone:
        return TeacherHead(student).requires_grad_(False).eval()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
            module.momentum = 0.0  # normalise by the batch without updating the running statistics
    return teacher


def embed_by_both(student: nn.Module, teacher: Teacher, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, K, projection) by the student, with a graph, and by the teacher, without one.

    A teacher with its own backbone runs first: the memory of its forward pass is then free before the
    student's graph needs it, and the two do not add up.
    """
    if isinstance(teacher, TeacherHead):
        embeddings, features = student(tiles)
        return embeddings, teacher.embed(features)
    targets = teacher.embed(tiles)
    return student(tiles)[0], targets


class TeacherUpdate:
    """Exponential moving average of the student, in place: `t = momentum * t + (1 - momentum) * s`.

    Buffers are averaged like weights, because the running statistics of a BatchNorm belong to the weights
    that produced them; integer counters are copied. Tensors that the teacher lacks (a shared backbone) are
    skipped. Make it when both networks are on their device: it looks up their tensors once.
    """

    def __init__(self, teacher: Teacher, student: VocoNet) -> None:
        target, source = teacher.state_dict(keep_vars=True), student.state_dict(keep_vars=True)
        averaged = [name for name, value in target.items() if value.is_floating_point()]
        copied = [name for name in target if name not in averaged]
        self._averaged, self._copied = (
            ([target[name] for name in names], [source[name] for name in names])
            for names in (averaged, copied)
        )

    @torch.no_grad()
    def __call__(self, momentum: float) -> None:
        """Call it once per step, after the optimiser's."""
        torch._foreach_lerp_(*self._averaged, 1 - momentum)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)


def teacher_momentum(step: int, options: VocoOptions) -> float:
    """Momentum of the teacher at a step: from `momentum` to `final_momentum` by half a cosine."""
    if options.final_momentum is None:
        return options.momentum
    left = 0.5 * (1 + math.cos(math.pi * step / options.steps))
    return options.final_momentum - (options.final_momentum - options.momentum) * left


@torch.no_grad()
def teacher_distance(teacher: Teacher, student: VocoNet) -> float:
    """Relative distance of the teacher's weights from the student's, `|t - s| / |s|`."""
    source = dict(student.named_parameters())
    pairs = [(slow, source[name]) for name, slow in teacher.named_parameters()]
    gap = torch.stack([(slow - fast).square().sum() for slow, fast in pairs]).sum()
    size = torch.stack([fast.square().sum() for _, fast in pairs]).sum()
    return (gap / size).sqrt().item()
