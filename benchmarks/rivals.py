"""Rivals of 2D-VoCo plus: other pre-training methods on the same samples, with the loop of train_voco.py.

    python benchmarks/rivals.py --method simclr --config configs/voco/plus.yaml --data data/prepared \\
        --backbone tf_efficientnet_lite0 --first-weights package --batch 12 --output runs/rivals/simclr

All train on the tiles that VocoDataset reads for plus, with its optimiser. A step encodes as many tiles by
each of its networks as one of plus: those of all crops, or for simclr and byol two views of every second
crop. As for plus, the exported encoder is a moving average (EMA) of the trained one, of `--momentum`.

    simclr    two views of a crop are alike, all other views of the batch are not (arXiv 2002.05709)
    byol      predict a view's embedding by the teacher from another view (arXiv 2006.07733)
    position  predict where a crop was cut: (z, y, x) by linear regression
    masked    predict the pixels of hidden patches (SimMIM, arXiv 2111.09886)

simclr and byol take their losses from lightly: pip install --no-deps lightly lightly-utils
"""

import copy
from abc import abstractmethod
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from harness import device_name, machine
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize
from torch.optim.swa_utils import update_bn
from views import ViewMaker, draw_hidden

from src.core.config import check_range, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import say
from src.core.runtime import sample_rng
from src.nn.encoder import encoder_width
from src.nn.encoder3d import VOLUME_BACKBONES
from src.nn.training import LossAndMetrics, Progress
from src.voco.dataset import VolumeSample
from src.voco.model import VocoNet, embed_by_both, teacher_distance
from src.voco.monitors import spread_of
from src.voco.options import VocoOptions
from src.voco.run import Pretraining, pretrain

_SIMCLR_WIDTH = 128  # of the projection; the hidden layer is as wide as the features
_BYOL_HIDDEN, _BYOL_WIDTH = 4096, 256  # of projector and predictor
_STATISTICS_BATCHES = 20  # whose tiles give the BatchNorms of a masked encoder their statistics


@dataclass(frozen=True, kw_only=True)
class RivalOptions(VocoOptions):
    """Options of a rival: those of train_voco.py, without the ones of its objective.

    `--temperature` is that of NT-Xent (SimCLR: 0.1). `--momentum` is that of the exported average and of
    byol's teacher; BYOL's 0.996, rising to 1, is too slow for a few hundred steps.
    """

    method: Literal["simclr", "byol", "position", "masked"]
    """What the encoder learns from: two views (simclr, byol), its position, or masked pixels."""

    smallest_area: float = 0.08
    """Smallest share of a tile's area that a view shows (simclr, byol; both papers: 0.08)."""

    hidden_side: int = 8
    """Side in pixels of the patches that masked hides, of which --tile is a multiple (SimMIM: 32 of 192 to
    224 pixels)."""

    hidden_share: float = 0.6
    """Share of the patches of a tile that masked hides (SimMIM: 0.6)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "smallest_area", "hidden_share", above=0, at_most=1)
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
        UserError: as `pretrain`, several processes, or lightly is not installed.
    """
    return pretrain(options, method=_METHODS[options.method])


class Rival(Pretraining):
    """A method of its own inputs and loss; networks, samples, optimiser and files are those of 2D-VoCo.

    All draws follow from (seed, step).
    """

    script = "benchmarks/rivals.py"
    memory_advice = "lower --batch"
    options: RivalOptions

    def build_student(self) -> VocoNet:
        if self.runtime.world > 1:
            raise UserError("rivals train in one process: start them with python, not torchrun")
        student = super().build_student()
        self.add_heads(student)
        return student

    @abstractmethod
    def add_heads(self, student: VocoNet) -> None:
        """Replace the head of a new network; torch is seeded."""

    @abstractmethod
    def make_inputs(self, batch: VolumeSample, number: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return what `compare` takes for the `number`-th batch, on the device."""

    @abstractmethod
    def compare(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, (), and embeddings or features (..., D) whose spread shows a collapse."""

    def compute_loss(self, batch: VolumeSample, number: int, step: int) -> LossAndMetrics:
        inputs = self.make_inputs(batch, number, np.random.default_rng([self.options.seed, number]))
        with self.runtime.autocast():
            loss, embeddings = self.compare(*inputs)
        self._volume_losses[number] = loss.detach().expand(len(batch.tiles))  # not known per volume
        spread = spread_of([normalize(embeddings.detach().float(), dim=-1)])
        return LossAndMetrics(loss, {"loss": loss.detach(), "embedding_std": spread})

    def report(self, at: Progress, means: dict[str, float]) -> dict[str, float]:
        self._volume_losses.clear()
        distance = teacher_distance(self.teacher, self.runtime.unwrap(self.network))
        metrics = means | {"teacher_distance": distance, "lr": at.lr, "seconds": at.seconds}
        metrics["volumes_per_s"] = at.batches * self.options.batch / at.elapsed_s
        line = (
            "loss {loss:.4f}  lr {lr:.1e}  std {embedding_std:.2f}  teacher {teacher_distance:.1e}  "
            "{volumes_per_s:.1f} volumes/s"
        )
        say(f"step {at.step}/{self.options.steps}  {line.format_map(metrics)}")
        self._warn_of_collapse(at.step, metrics["embedding_std"])
        return metrics


class TwoViews(Rival):
    """Two views of every second crop of a batch, chosen at random: as many tiles as a step of plus."""

    def make_inputs(self, batch: VolumeSample, number: int, rng: np.random.Generator) -> tuple[Tensor]:
        """Return the views, uint8 (2, M, T, tile, tile, C)."""
        options = self.options
        tiles = batch.tiles.to(self.runtime.device, non_blocking=True).flatten(0, 1)
        chosen = torch.from_numpy(rng.permutation(len(tiles))[: len(tiles) // 2])
        tiles = tiles[chosen.to(tiles.device)]
        make_view = ViewMaker(self.appearance, options.appearance, options.smallest_area)
        return (torch.stack([make_view(tiles, rng), make_view(tiles, rng)]),)


class SimClr(TwoViews):
    """Cross-entropy of a view's counterpart among all views of the batch (NT-Xent)."""

    def add_heads(self, student: VocoNet) -> None:
        width = encoder_width(student.encoder)
        student.head = Mlp(width, width, _SIMCLR_WIDTH)
        self.contrast = lightly_loss("NTXentLoss", temperature=self.options.temperature)

    def compare(self, views: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self.network(views)[0].float()  # (2, M, 128)
        return self.contrast(*embeddings), embeddings


class Byol(TwoViews):
    """Negative cosine of the prediction from a view to the teacher's embedding of the other, both ways.

    Both views of a batch share the batch statistics of a network.
    """

    def add_heads(self, student: VocoNet) -> None:
        student.head = Mlp(encoder_width(student.encoder), _BYOL_HIDDEN, _BYOL_WIDTH)
        student.predictor = Mlp(_BYOL_WIDTH, _BYOL_HIDDEN, _BYOL_WIDTH)
        self.distance = lightly_loss("NegativeCosineSimilarity")

    def compare(self, views: Tensor) -> tuple[Tensor, Tensor]:
        online, targets = embed_by_both(self.network, self.teacher, views)  # (2, M, 256) each
        predicted, targets = self.runtime.unwrap(self.network).predictor(online).float(), targets.float()
        loss = self.distance(predicted[0], targets[1]) + self.distance(predicted[1], targets[0])
        return loss / 2, online


class Position(Rival):
    """Squared error of a linear prediction of a crop's place, from the pooled features.

    The place is that of the centre of the shown slices on the canvas, (z, y, x) from 0 to 1. It is more exact
    than the labels of plus, which are relative to a random part of the canvas.
    """

    def add_heads(self, student: VocoNet) -> None:
        student.head = nn.Linear(encoder_width(student.encoder), 3)
        nn.init.constant_(student.head.bias, 0.5)  # the middle of the canvas

    def make_inputs(self, batch: VolumeSample, number: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return the tiles (B, K, T, tile, tile, C) with changed appearance, and their places (B, K, 3)."""
        places = np.stack([self._find_places(*key) for key in self._order.global_batch(number)])
        return self._change_appearance(batch), torch.from_numpy(places).to(self.runtime.device)

    def _find_places(self, epoch: int, entry: int) -> np.ndarray:
        """Draw the places of a sample's crops as the sample did: float32 (K, 3)."""
        options, index = self.options, self.dataset.index
        series = index.series(index.row_of(entry))
        crops = self.dataset.place_crops(series, sample_rng(options.seed, epoch, entry))
        z = (crops.depths.mean(axis=1, keepdims=True) + 0.5) / options.depth
        return np.hstack([z, (crops.corners + np.array(crops.sides) / 2) / options.canvas]).astype(np.float32)

    def compare(self, tiles: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        predicted, features = self.network(tiles)
        return mse_loss(predicted.float(), places), features


class Masked(Rival):
    """Absolute error of the hidden pixels, predicted from the last feature map by one linear layer (SimMIM).

    Hidden pixels of the input are a learnt value. Appearance is not changed: noise and holes cannot be
    predicted, and SimMIM changes no colours, either.
    """

    def add_heads(self, student: VocoNet) -> None:
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

    def make_inputs(self, batch: VolumeSample, number: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return images uint8 (M, C, tile, tile) and which pixels are hidden, bool (M, 1, tile, tile)."""
        options, device = self.options, self.runtime.device
        images = self.runtime.unwrap(self.network).arrange(batch.tiles.to(device, non_blocking=True))
        hidden = draw_hidden(len(images), options.tile, options.hidden_side, options.hidden_share, rng)
        return images, torch.from_numpy(hidden[:, None]).to(device)

    def compare(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        student = self.runtime.unwrap(self.network)
        pixels = student.normalise(images)
        shown = torch.where(hidden, student.hidden_value, pixels)
        shown = shown.contiguous(memory_format=student.memory_format)
        maps = student.encoder.forward_features(shown)  # (M, D, tile / stride, tile / stride)
        error = (student.head(maps).float() - pixels).abs() * hidden
        return error.sum() / (hidden.sum() * images.shape[1]), maps.mean((2, 3))

    def export(self, path: Path, step: int) -> None:
        """Write the teacher with batch statistics of whole images: in training, a part of each is hidden."""
        trained = self.teacher
        self.teacher = copy.deepcopy(trained)
        batches = islice(self.read(0), _STATISTICS_BATCHES)
        images = (self.teacher.arrange(batch.tiles.to(self.runtime.device)) for batch in batches)
        update_bn(map(self.teacher.normalise, images), self.teacher.encoder)
        super().export(path, step)
        self.teacher = trained


class Mlp(nn.Module):
    """Linear, BatchNorm over all crops, ReLU, Linear: (..., width) -> (..., out)."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.flatten(0, -2)).unflatten(0, features.shape[:-1])


def lightly_loss(name: str, **arguments: Any) -> nn.Module:
    """Create a loss of lightly, which is not among the kit's requirements.

    Raises:
        UserError: it is not installed.
    """
    try:
        from lightly import loss
    except ImportError:
        command = "pip install --no-deps lightly lightly-utils"
        raise UserError(f"--method simclr and byol need the losses of lightly: {command}") from None
    return getattr(loss, name)(**arguments)


_METHODS = MappingProxyType({"simclr": SimClr, "byol": Byol, "position": Position, "masked": Masked})


def main(argv: list[str] | None = None) -> None:
    options = parse_options(RivalOptions, argv, prog="rivals.py", description=__doc__)
    say(f"{device_name()}; {machine()}")
    train_rival(options)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
