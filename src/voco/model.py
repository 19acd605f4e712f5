"""Student and teacher: a 2D backbone over the tiles of a slab, one embedding a crop.

2D-VoCo (arXiv 2601.14593): the tiles at one in-plane position over the slices of a slab are encoded one by
one and averaged, and the average is projected. Only the backbone is kept after pre-training.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
    """Backbone, mean over the slab's slices, dropout, projection head.

    Args:
        encoder: maps images (M, C, H, W) to pooled features (M, `width`), whatever H and W.
        width: the encoder's feature width.
        projection: width of the head and of the embedding.
        dropout: share of pooled features dropped in training.
        mean, std: grey-level mean and standard deviation of each channel, on the scale 0 to 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        *,
        projection: int,
        dropout: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        # channels-last convolutions are the fast ones on GPUs and CPUs alike, and tiles arrive in that order
        self.encoder = encoder.to(memory_format=torch.channels_last)
        self.dropout = nn.Dropout(dropout)
        self.head = ProjectionHead(width, projection)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """Embed crops: uint8 tiles (B, K, T, H, W, C) of K crops over T slices -> (B, K, projection)."""
        volumes, crops, slices = tiles.shape[:3]
        images = tiles.flatten(0, 2).permute(0, 3, 1, 2)  # (B*K*T, C, H, W), channels-last in memory
        features = self.encoder((images / 255 - self.mean) / self.std)  # (B*K*T, width)
        features = features.unflatten(0, (volumes * crops, slices)).mean(dim=1)  # (B*K, width)
        return self.head(self.dropout(features)).unflatten(0, (volumes, crops))


def make_teacher(student: VocoNet) -> VocoNet:
    """A copy of the student, backbone, head and buffers, that no gradient trains.

    It normalises by the statistics of the batch, as the student does: running averages of the first steps are
    far from any batch, and student and teacher would not be comparable. Dropout and stochastic depth are off,
    since a target should carry no noise. Its forward never changes its own buffers; `update_teacher` alone
    does.
    """
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    for module in teacher.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
            module.momentum = 0.0  # normalise by the batch, keep the running statistics as they are
    return teacher


@torch.no_grad()
def update_teacher(teacher: VocoNet, student: VocoNet, momentum: float) -> None:
    """Exponential moving average of the whole student, in place: `t = momentum * t + (1 - momentum) * s`.

    Call it once a step, after the optimiser's. Buffers are averaged like weights, since the running
    statistics of a BatchNorm belong to the weights that made them; counters (integers) are copied.
    """
    target, source = teacher.state_dict(), student.state_dict()
    averaged = [name for name, value in target.items() if value.is_floating_point()]
    torch._foreach_lerp_(
        [target[name] for name in averaged], [source[name] for name in averaged], 1 - momentum
    )
    for name in target.keys() - set(averaged):
        target[name].copy_(source[name])


@torch.no_grad()
def teacher_distance(teacher: VocoNet, student: VocoNet) -> float:
    """Relative distance of the weights, `|t - s| / |s|`: how far the teacher trails behind the student."""
    pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
    gap = torch.stack([(slow - fast).square().sum() for slow, fast in pairs]).sum()
    size = torch.stack([fast.square().sum() for _, fast in pairs]).sum()
    return (gap / size).sqrt().item()
