"""Rivals of 2D-VoCo plus that the kit does not offer, on the same samples, with the loop of train_voco.py.

    python benchmarks/rivals.py --method byol --config configs/voco/plus.yaml --data data/prepared \\
        --backbone tf_efficientnet_lite0 --first-weights package --batch 12 --output runs/rivals/byol

All train on the tiles that VocoDataset reads for plus, with its optimiser. A step encodes as many tiles by
each of its networks as one of plus: those of all crops, or for byol two views of every second crop. As for
plus, the exported encoder is a moving average (EMA) of the trained one, of `--momentum`.

    byol      predict a view's embedding by the teacher from another view (arXiv 2006.07733)
    position  predict where a crop was cut: (z, y, x) by linear regression
    masked    predict the pixels of hidden patches (SimMIM, arXiv 2111.09886)
"""

import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from harness import device_name, machine
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss, normalize
from torch.optim.swa_utils import update_bn

from src.core.config import check_range, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import say
from src.core.runtime import sample_rng
from src.nn.encoder import encoder_width
from src.nn.encoder3d import VOLUME_BACKBONES
from src.voco.dataset import VolumeSample
from src.voco.model import MlpHead, VocoNet, embed_by_both
from src.voco.monitors import spread_of
from src.voco.options import VocoOptions
from src.voco.pretraining import Pretraining
from src.voco.run import pretrain

_BYOL_HIDDEN, _BYOL_WIDTH = 4096, 256  # of projector and predictor
_STATISTICS_BATCHES = 20  # whose tiles give the BatchNorms of a masked encoder their statistics


@dataclass(frozen=True, kw_only=True)
class RivalOptions(VocoOptions):
    """Options of a rival: those of train_voco.py, without the ones of its objective.

    `--momentum` is that of the exported average and of byol's teacher; BYOL's 0.996, rising to 1, is too slow
    for a few hundred steps.
    """

    method: Literal["byol", "position", "masked"]
    """What the encoder learns from: two views (byol), its position, or masked pixels."""

    hidden_side: int = 8
    """Side in pixels of the patches that masked hides, of which --tile is a multiple (SimMIM: 32 of 192 to
    224 pixels)."""

    hidden_share: float = 0.6
    """Share of the patches of a tile that masked hides (SimMIM: 0.6)."""

    @property
    def shows_views(self) -> bool:
        return self.method == "byol"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "hidden_share", above=0, at_most=1)
        check_range(self, "hidden_side", at_least=1)
        if self.tile % self.hidden_side:
            raise ValueError(f"option --tile {self.tile} must be a multiple of --hidden-side")
        if self.micro_batch or self.shared_backbone or self.execution == "graph":
            raise ValueError("rivals take no --micro-batch, --shared-backbone and --execution graph")
        if self.backbone in VOLUME_BACKBONES:
            raise ValueError(f"rivals take 2D backbones, not --backbone {self.backbone}")
        if self.method == "position" and self.extent != "whole":
            raise ValueError("option --method position needs --extent whole: a slab may lie anywhere")


def train_rival(options: RivalOptions) -> Path:
    """Pre-train by a rival's method, from the start or from a checkpoint, and export the encoder.

    Returns:
        The path of `encoder.safetensors`.

    Raises:
        UserError: as `pretrain`, or several processes.
    """
    return pretrain(options, method=_METHODS[options.method])


class Rival(Pretraining):
    """A method with a head of its own, trained in one process."""

    script = "benchmarks/rivals.py"
    memory_advice = "lower --batch"
    options: RivalOptions

    def build_student(self) -> VocoNet:
        if self.runtime.world > 1:
            raise UserError("rivals train in one process: start them with python, not torchrun")
        student = super().build_student()
        self.add_head(student)
        return student

    def add_head(self, student: VocoNet) -> None:
        """Replace the head of a new network; torch is seeded."""


class Byol(Rival):
    """Negative cosine of the prediction from a view to the teacher's embedding of the other, both ways.

    Both views of a batch share the batch statistics of a network.
    """

    def add_head(self, student: VocoNet) -> None:
        student.head = MlpHead(encoder_width(student.encoder), _BYOL_HIDDEN, _BYOL_WIDTH)
        student.predictor = MlpHead(_BYOL_WIDTH, _BYOL_HIDDEN, _BYOL_WIDTH)

    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with self.runtime.autocast():
            both = embed_by_both(self.network, self.teacher, self.change_appearance(batch))  # (B, 2V, 256)
            predicted = self.runtime.unwrap(self.network).predictor(both[0])
        targets = both[1].roll(predicted.shape[1] // 2, dims=1)  # of the other view
        loss = -cosine_similarity(predicted.float(), targets.float(), dim=-1).mean(1)
        return {"prediction": loss}, {"embedding_std": spread(both[0])}


class Position(Rival):
    """Squared error of a linear prediction of a crop's place, from the pooled features.

    The place is that of the centre of the shown slices on the canvas, (z, y, x) from 0 to 1. It is more exact
    than the labels of plus, which are relative to a random part of the canvas.
    """

    def add_head(self, student: VocoNet) -> None:
        student.head = nn.Linear(encoder_width(student.encoder), 3)
        nn.init.constant_(student.head.bias, 0.5)  # the middle of the canvas

    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        places = self.find_places(number).to(self.runtime.device)
        with self.runtime.autocast():
            predicted, features = self.network(self.change_appearance(batch))
        error = mse_loss(predicted.float(), places, reduction="none").mean((1, 2))
        return {"position": error}, {"embedding_std": spread(features)}

    def find_places(self, number: int) -> Tensor:
        """Draw the places of the crops of the `number`-th batch as its samples did: float32 (B, K, 3)."""
        options, index = self.options, self.dataset.index
        places = []
        for epoch, entry in self._order.global_batch(number):
            series = index.series(index.row_of(entry))
            crops, _ = self.dataset.place_crops(series, sample_rng(options.seed, epoch, entry))
            z = (crops.depths.mean(axis=1, keepdims=True) + 0.5) / options.depth
            places.append(np.hstack([z, (crops.corners + crops.sides / 2) / options.canvas]))
        return torch.from_numpy(np.stack(places)).float()


class Masked(Rival):
    """Absolute error of the hidden pixels, predicted from the last feature map by one linear layer (SimMIM).

    Hidden pixels of the input are a learnt value. Appearance is not changed: noise and holes cannot be
    predicted, and SimMIM changes no colours, either.
    """

    def add_head(self, student: VocoNet) -> None:
        channels, tile = self.options.channels, self.options.tile
        blank = torch.zeros(1, channels, tile, tile)
        with torch.inference_mode():
            _, width, *sides = student.encoder.eval().forward_features(blank).shape
        student.encoder.train()
        if len(sides) != 2 or any(tile % side for side in sides):
            raise UserError("--method masked needs a backbone whose feature map divides --tile evenly")
        stride = tile // sides[0]
        student.head = nn.Sequential(nn.Conv2d(width, stride**2 * channels, 1), nn.PixelShuffle(stride))
        student.hidden_value = nn.Parameter(torch.zeros(channels, 1, 1))

    def before_first_step(self) -> None:
        encoder = self.runtime.unwrap(self.network).encoder
        if self.options.execution == "compile":
            encoder.forward_features = torch.compile(encoder.forward_features)

    def compute_terms(self, batch: VolumeSample, number: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        options, device = self.options, self.runtime.device
        images = self.runtime.unwrap(self.network).arrange(batch.tiles.to(device, non_blocking=True))
        rng = np.random.default_rng([options.seed, number])
        hidden = draw_hidden(len(images), options.tile, options.hidden_side, options.hidden_share, rng)
        error, maps = self.reconstruct(images, torch.from_numpy(hidden[:, None]).to(device))
        error = error.view(len(batch.tiles), -1).mean(1)
        return {"pixels": error}, {"embedding_std": spread(maps.mean((2, 3)))}

    def reconstruct(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the hidden pixels of images.

        Args:
            images: uint8 (M, C, tile, tile).
            hidden: bool (M, 1, tile, tile), as many of each image.

        Returns:
            The mean error of each image, (M,), and its feature map, (M, D, tile / stride, tile / stride).
        """
        student = self.runtime.unwrap(self.network)
        pixels = student.normalise(images)
        shown = torch.where(hidden, student.hidden_value, pixels)
        shown = shown.contiguous(memory_format=student.memory_format)
        with self.runtime.autocast():
            maps = student.encoder.forward_features(shown)
            predicted = student.head(maps)
        error = (predicted.float() - pixels).abs().mean(1, keepdim=True) * hidden
        return error.sum((1, 2, 3)) / hidden.sum((1, 2, 3)), maps

    def export(self, path: Path, step: int) -> None:
        """Write the teacher with batch statistics of whole images: in training, a part of each is hidden."""
        trained = self.teacher
        self.teacher = copy.deepcopy(trained)
        batches = islice(self.read(0), _STATISTICS_BATCHES)
        images = (self.teacher.arrange(batch.tiles.to(self.runtime.device)) for batch in batches)
        update_bn(map(self.teacher.normalise, images), self.teacher.encoder)
        super().export(path, step)
        self.teacher = trained


def draw_hidden(count: int, side: int, patch: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the patches that are hidden of each tile: the same number of all, rounded up as in SimMIM.

    Returns:
        bool (count, side, side), True where hidden.
    """
    cells = side // patch
    hidden = rng.random((count, cells**2)).argsort(axis=1) < np.ceil(share * cells**2)
    return hidden.reshape(count, cells, cells).repeat(patch, axis=1).repeat(patch, axis=2)


def spread(embeddings: Tensor) -> Tensor:
    """Spread of embeddings or features (..., D) of any length, which shows a collapse."""
    return spread_of([normalize(embeddings.detach().float(), dim=-1)])


_METHODS = MappingProxyType({"byol": Byol, "position": Position, "masked": Masked})


def main(argv: list[str] | None = None) -> None:
    options = parse_options(RivalOptions, argv, prog="rivals.py", description=__doc__)
    say(f"{device_name()}; {machine()}")
    train_rival(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
