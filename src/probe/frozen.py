"""A frozen network, of a finished run or any encoder, and the held-out series that it is evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from src.core.errors import UserError
from src.core.runtime import torch_seed
from src.data.doubtful import is_doubtful
from src.data.prepared import PreparedDataset, as_channels
from src.data.selection import Neighbours
from src.nn.encoder import find_encoder_file
from src.nn.first_weights import Source
from src.nn.training import load_checkpoint
from src.probe.options import TILE, NetworkOptions
from src.voco.canvas import resize_plane
from src.voco.crops import CropGrid
from src.voco.model import VocoNet, VolumeVocoNet, build_network, load_start
from src.voco.options import VocoOptions

GRID = 3
"""Tiles along each side of a slice, in the geometry that all methods share."""

ALONE = Neighbours()
"""No neighbours: an input of one slice."""

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FrozenNet:
    """A network in evaluation mode with its input, loaded by `load_run` or `load_encoder`."""

    network: VocoNet
    weights: str
    """description of its weights"""
    tile: int
    """side of its tiles in pixels"""
    windows: tuple[str, ...]
    slices: int
    """slices of a crop of a 3D network; a 2D network averages over any number"""
    neighbours: Neighbours = ALONE
    """slices that its input shows together with a slice"""
    run: VocoOptions | None = None
    """options of its run; None for an encoder alone, which has no projection head"""

    @property
    def is_volume(self) -> bool:
        """Whether the backbone encodes a crop as a volume, not slice by slice."""
        return isinstance(self.network, VolumeVocoNet)

    def embed(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Embed crops in batches; an embedding does not depend on the other crops of its batch.

        Args:
            crops: uint8 (K, T, tile, tile, C).

        Returns:
            float32 `features` (K, width), pooled, and, of a run, `projection` (K, projection) of its head.

        Raises:
            UserError: values that are not finite.
        """
        self.network.eval()
        parts: dict[str, list[torch.Tensor]] = {"features": [], "projection": []}
        with torch.inference_mode():
            for batch in self._batches(crops):
                projection, features = self.network(batch)
                parts["features"].append(features[0].float().cpu())
                parts["projection"].append(projection[0].float().cpu())
        if self.run is None:
            del parts["projection"]
        embedded = {name: torch.cat(values).numpy() for name, values in parts.items()}
        if not all(np.isfinite(values).all() for values in embedded.values()):
            raise UserError("the network gives values that are not finite: its training has failed")
        return embedded

    def _batches(self, crops: np.ndarray) -> list[torch.Tensor]:
        device = next(self.network.parameters()).device
        at_once = max(1, _IMAGES_AT_ONCE // crops.shape[1])
        parts = torch.from_numpy(crops).split(at_once)
        return [part[None].to(device) for part in parts]  # (1, K, T, tile, tile, C)


def load_network(options: NetworkOptions) -> FrozenNet:
    """Load the network of `--run` or `--encoder`."""
    if options.run:
        return load_run(options.run)
    return load_encoder(options.encoder, options.windows, options.tile, options.backbone, options.seed)


def load_run(folder: Path) -> FrozenNet:
    """Load the teacher of a run, backbone and head.

    A teacher that is only a head (large-scale VoCo) uses the student's backbone. BatchNorms normalise by
    their running statistics, as in any later use.

    Raises:
        UserError: no checkpoint of pre-training in `folder`, or one of another version.
    """
    path = folder / "last.pt"
    saved = load_checkpoint(path)
    if not {"options", "student", "teacher"} <= saved.keys():
        raise UserError(f"{path} is not a checkpoint of train_voco.py")
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved["options"].items()
    }
    try:
        options = VocoOptions(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} was written by another version of train_voco.py ({error})") from None
    if len(set(options.windows_of_sets)) == 1:  # the windows of all sets; for a mixture, --windows
        options = replace(options, windows=options.windows_of_sets[0], set_windows=())
    with torch_seed(0):
        network = build_network(replace(options, micro_batch=0))
    try:
        network.load_state_dict(saved["student"] | saved["teacher"])
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its backbone: {str(error).splitlines()[-1]}") from None
    return replace(_freeze(network, options, f"teacher of {folder}"), run=options)


def load_encoder(
    source: Source,
    windows: Sequence[str] = (),
    tile: int = TILE,
    backbone: str | None = None,
    seed: int = 0,
) -> FrozenNet:
    """Load an encoder alone: of a file, ImageNet weights, or random weights.

    The running statistics of BatchNorms of random weights are the initial 0 and 1, which leave a network
    nearly linear: a stronger baseline than random weights with batch statistics of the crops.

    Args:
        source: an encoder file or another one that `load_first_weights` reads, imagenet, package or none.
        windows: default: those that the file records, or soft.
        tile: side of a tile in pixels, and depth of a 3D backbone's crops.
        backbone: default: the one that the file records.
        seed: of random weights.

    Raises:
        UserError: the weights cannot be loaded, or the backbone is not known.
    """
    about = find_encoder_file(source)
    if about is None and backbone is None:
        raise UserError(f"{source} is no encoder file, which would name its backbone: give --backbone")
    options = VocoOptions(
        data=(Path(),),
        output=Path(),
        backbone=backbone or about.name,
        first_weights=source,
        windows=tuple(windows) or (about.windows if about else ("soft",)),
        neighbours=about.neighbours if about else 1,
        neighbour_mm=about.neighbour_mm if about else 0.0,
        tile=tile,
        slices=tile,
        projection=1,  # of a head without use
    )
    with torch_seed(seed):
        network = build_network(options)
    first = load_start(network, options)
    return _freeze(network, options, f"random, seed {seed}" if first.report is None else str(first))


def _freeze(network: VocoNet, options: VocoOptions, weights: str) -> FrozenNet:
    network.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_(False)
    neighbours = Neighbours(options.neighbours, options.neighbour_mm)
    return FrozenNet(network, weights, options.tile, options.windows, options.slices, neighbours)


@dataclass(frozen=True)
class HeldOut:
    """Patients of a prepared set, in the windows and neighbours that a network uses, opened by `open`."""

    dataset: PreparedDataset
    series: pd.DataFrame
    """series of the chosen patients, numbered among all that are not doubtful"""
    channels: tuple[int, ...]
    neighbours: Neighbours = ALONE

    @classmethod
    def open(
        cls,
        folder: Path,
        windows: Sequence[str],
        patients: int | None = None,
        neighbours: Neighbours = ALONE,
    ) -> "HeldOut":
        """Open a prepared set, or its first `patients` patients; a doubtful series would measure its fault.

        Raises:
            UserError: no such set, no series in it that is not doubtful, or it lacks a window.
        """
        dataset = PreparedDataset.open(folder)
        channels = dataset.channels(windows)
        series = dataset.series[~is_doubtful(dataset.series)].reset_index(drop=True)
        if series.empty:
            why = "" if dataset.series.empty else f": all {len(dataset.series)} are doubtful"
            raise UserError(f"{folder} has no usable series{why}")
        chosen = series["patient_id"].drop_duplicates()[:patients]
        return cls(dataset, series[series["patient_id"].isin(chosen)], channels, neighbours)

    @property
    def patients(self) -> int:
        return self.series["patient_id"].nunique()

    def read(self, patient_id: str, series_id: str, indices: np.ndarray, side: int) -> np.ndarray:
        """Read whole slices with their neighbours, resized: uint8 (T, side, side, C); decode each once."""
        key = (patient_id, series_id)
        slices = self.dataset.slice_counts[key]
        shown = self.neighbours.find(indices, slices, lambda: self.dataset.z_mm(*key))  # (T, neighbours)
        unique, place = np.unique(shown, return_inverse=True)
        images = self.dataset.read_slices(*key, unique)[..., list(self.channels)]
        resized = np.stack([resize_plane(image, side) for image in images])
        return as_channels(resized[place.reshape(shown.shape)])


def cut(images: np.ndarray, starts: np.ndarray, tile: int) -> np.ndarray:
    """Cut square tiles of every slice; they may exceed the image by less than a tile, where they are black.

    Args:
        images: (T, H, W, C).
        starts: (K, 2) first row and column of each tile.

    Returns:
        (K, T, tile, tile, C).
    """
    padded = np.pad(images, ((0, 0), (tile, tile), (tile, tile), (0, 0)))
    return np.stack([padded[:, y + tile : y + 2 * tile, x + tile : x + 2 * tile] for y, x in starts])


def grid_starts(tile: int) -> np.ndarray:
    """First rows and columns of the 3 x 3 tiles of a slice of 3 * `tile` pixels: int64 (9, 2)."""
    return CropGrid((GRID * tile,) * 2, (GRID,) * 2).base_starts()
