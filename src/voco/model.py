"""Student and teacher: a backbone over crops, one embedding a crop.

2D-VoCo (arXiv 2601.14593) encodes the tiles at one position slice by slice and averages them; VoCo (arXiv
2402.17300) encodes the crop as a volume. Both project the result. The teacher is a moving average of the
whole student, or (large-scale VoCo, arXiv 2410.09890) of its head alone, on the student's backbone. Only the
backbone is kept after pre-training.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from src.core.errors import UserError
from src.core.log import say
from src.nn.encoder import (
    check_input_size,
    create_encoder,
    default_greys,
    encoder_width,
)
from src.nn.encoder3d import VOLUME_BACKBONES, check_sides, create_volume_encoder
from src.nn.first_weights import load_first_weights
from src.voco.options import VocoOptions

FEWEST_IN_BATCH_STATISTICS = 4
"""Images of a part (--micro-batch) that a BatchNorm may normalise; fewer say nothing of the batch."""


class ProjectionHead(nn.Module):
    """Linear, LayerNorm, ReLU, twice, then Linear: (M, width) pooled features -> (M, projection).

    Rows are embeddings and nothing else. BatchNorm over `(B, N, D)` would take the crop's slot for the
    channel, give each slot its own scale and shift, and tell the crops apart without looking at them.
    LayerNorm moreover keeps volumes apart, so that a volume's loss does not depend on how a batch is spread
    over processes.
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


class VocoNet(nn.Module):
    """Backbone over single slices, mean over the slices of a crop, dropout, projection head.

    Args:
        encoder: maps images (M, C, H, W) to pooled features (M, `width`), whatever H and W.
        width: the encoder's feature width.
        projection: width of the head and of the embedding.
        dropout: share of pooled features dropped in training.
        mean, std: grey-level mean and standard deviation of each channel, on the scale 0 to 1.
        micro_batch: images (of a `VolumeVocoNet`: crops) that pass the backbone at a time, 0 for all at once.
            Parts are computed again in the backward pass, so that the activations of one part live at a time
            and the gradient is that of the whole. Where a backbone normalises by batch statistics, those of a
            part stand for those of the batch.
    """

    memory_format = torch.channels_last
    """the fast order for convolutions on GPUs and CPUs alike; tiles arrive in it"""

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        projection: int,
        dropout: float,
        mean: Sequence[float],
        std: Sequence[float],
        micro_batch: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder.to(memory_format=self.memory_format)
        self.dropout = nn.Dropout(dropout)
        self.head = ProjectionHead(width, projection)
        self.micro_batch = micro_batch
        self.is_compiled = False
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Embed crops.

        Args:
            tiles: uint8 (B, K, T, H, W, C), K crops a volume over T slices.

        Returns:
            Embeddings (B, K, projection), and the features before dropout (B, K, width).
        """
        images = self._arrange(tiles)
        features = self._encode(images).unflatten(0, (*tiles.shape[:2], -1)).mean(dim=2)  # (B, K, width)
        return self.head(self.dropout(features)), features

    @torch.no_grad()
    def embed(self, tiles: Tensor) -> Tensor:
        """As a teacher: crops (B, K, T, H, W, C) -> (B, K, projection), without a graph."""
        return self(tiles)[0]

    def compile_encoder(self) -> None:
        """Compile the encoder in place: the names of its tensors stay as they are."""
        self.encoder.compile()
        self.is_compiled = True

    def _arrange(self, tiles: Tensor) -> Tensor:
        """Crops as the encoder's inputs: (B, K, T, H, W, C) -> (B*K*T, C, H, W), channels last in memory."""
        return tiles.flatten(0, 2).permute(0, 3, 1, 2)

    def _encode(self, images: Tensor) -> Tensor:
        if not 0 < self.micro_batch < len(images):
            return self._encode_part(images)
        # parts of even size: a last part of few images would have poor batch statistics
        parts = images.tensor_split(-(-len(images) // self.micro_batch))
        if not torch.is_grad_enabled():
            return torch.cat([self._encode_part(part) for part in parts])
        return torch.cat(
            [
                checkpoint(self._encode_part, part, use_reentrant=False, context_fn=self._pass_contexts)
                for part in parts
            ]
        )

    def _encode_part(self, images: Tensor) -> Tensor:
        shape = (-1, *(1,) * (images.ndim - 2))  # channels first
        pixels = images.to(self.mean.dtype).div_(255).sub_(self.mean.view(shape)).div_(self.std.view(shape))
        return self.encoder(pixels)  # (M, width)

    def _pass_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _kept_statistics(self.encoder)


class VolumeVocoNet(VocoNet):
    """Backbone over crops as volumes, dropout, projection head; the encoder maps (M, C, T, H, W)."""

    memory_format = torch.channels_last_3d

    def _arrange(self, tiles: Tensor) -> Tensor:
        """Crops as the encoder's inputs: (B, K, T, H, W, C) -> (B*K, C, T, H, W)."""
        return tiles.flatten(0, 1).permute(0, 4, 1, 2, 3)


class TeacherHead(nn.Module):
    """A teacher on the student's backbone: the moving average of the student's head alone."""

    def __init__(self, student: VocoNet) -> None:
        super().__init__()
        self.head = copy.deepcopy(student.head)  # under the student's names

    @torch.no_grad()
    def embed(self, student_features: Tensor) -> Tensor:
        """Features of the student's backbone (B, K, width) -> (B, K, projection), without a graph."""
        return self.head(student_features)


Teacher = VocoNet | TeacherHead


def build_network(options: VocoOptions) -> VocoNet:
    """The student of a run, 2D or 3D by the backbone's name, with its first weights.

    Raises:
        UserError: no such backbone, sides that it does not take, or first weights that cannot be had.
    """
    channels = len(options.windows)
    if options.backbone in VOLUME_BACKBONES:
        if options.pretrained:
            raise UserError(f"option --pretrained: {options.backbone} has no ImageNet weights; leave it off")
        kind, encoder = VolumeVocoNet, create_volume_encoder(options.backbone, channels)
        check_sides(f"backbone {options.backbone}", encoder, (options.slices, options.tile, options.tile))
    else:
        kind, encoder = VocoNet, create_encoder(options.backbone, channels, options.pretrained)
        check_input_size(encoder, channels, options.tile)
        encoder.train()
    couples_images = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    if couples_images and 0 < options.micro_batch < FEWEST_IN_BATCH_STATISTICS:
        raise UserError(
            f"option --micro-batch must be at least {FEWEST_IN_BATCH_STATISTICS} for {options.backbone}, "
            f"which normalises by the statistics of each part, got {options.micro_batch}"
        )
    mean, std = default_greys(options.windows)
    if options.encoder:  # weights go on with the grey levels that they know
        first = load_first_weights(encoder, options.encoder, options.windows)
        mean, std = first.mean, first.std
        say(f"{options.encoder}: {first.report}")
    network = kind(
        encoder,
        encoder_width(encoder),
        projection=options.projection,
        dropout=options.dropout,
        mean=mean,
        std=std,
        micro_batch=options.micro_batch,
    )
    if options.compile:
        network.compile_encoder()
    return network


def make_teacher(student: VocoNet, shared_backbone: bool) -> Teacher:
    """A copy of the student (backbone, head and buffers), or of its head alone, that no gradient trains.

    It normalises by the statistics of the batch, as the student does: running averages of the first steps are
    far from any batch, and student and teacher would not be comparable. Dropout and stochastic depth are off,
    since a target should carry no noise. Its forward never changes its own buffers; `update_teacher` alone
    does.
    """
    if shared_backbone:
        return TeacherHead(student).requires_grad_(False).eval()
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
            module.momentum = 0.0  # normalise by the batch, keep the running statistics as they are
    if student.is_compiled:
        teacher.compile_encoder()  # a copy is not compiled
    return teacher


def embed_by_both(student: nn.Module, teacher: Teacher, tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, K, projection) by the student, with a graph, and by the teacher, without one.

    A teacher with a backbone of its own goes first: what its forward needs for a while is then free again
    before the student's graph takes its memory, and the two do not add up.
    """
    if isinstance(teacher, TeacherHead):
        embeddings, features = student(tiles)
        return embeddings, teacher.embed(features)
    targets = teacher.embed(tiles)
    return student(tiles)[0], targets


@torch.no_grad()
def update_teacher(teacher: Teacher, student: VocoNet, momentum: float) -> None:
    """Exponential moving average of the student, in place: `t = momentum * t + (1 - momentum) * s`.

    Call it once a step, after the optimiser's. Buffers are averaged like weights, since the running
    statistics of a BatchNorm belong to the weights that made them; counters (integers) are copied. Tensors
    that the teacher lacks (a shared backbone) are left alone.
    """
    target, source = teacher.state_dict(), student.state_dict()
    averaged = [name for name, value in target.items() if value.is_floating_point()]
    torch._foreach_lerp_(
        [target[name] for name in averaged], [source[name] for name in averaged], 1 - momentum
    )
    for name in target.keys() - set(averaged):
        target[name].copy_(source[name])


@torch.no_grad()
def teacher_distance(teacher: Teacher, student: VocoNet) -> float:
    """Relative distance of the teacher's weights, `|t - s| / |s|`: how far they trail."""
    source = dict(student.named_parameters())
    pairs = [(slow, source[name]) for name, slow in teacher.named_parameters()]
    gap = torch.stack([(slow - fast).square().sum() for slow, fast in pairs]).sum()
    size = torch.stack([fast.square().sum() for _, fast in pairs]).sum()
    return (gap / size).sqrt().item()


@contextmanager
def _kept_statistics(encoder: nn.Module) -> Iterator[None]:
    """Running statistics of BatchNorms stay as they are, though the batch normalises: a second computation of
    the same images must not count twice."""
    layers = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer, (_, counter) in zip(layers, before, strict=True):
            layer.momentum = 0.0
            layer.num_batches_tracked = None if counter is None else counter.clone()
        yield
    finally:
        for layer, (momentum, counter) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, counter
