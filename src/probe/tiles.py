"""Features for a probe: of tiles, with the organ at their centre, and of slices, with their height.

The input of a 2D network is one slice of a tile. The input of a 3D network is `slices` of them around it,
spaced like the pixels of its tile, so that voxels are cubes; beyond the ends of a series the end slices
repeat.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd

from src.core.log import progress
from src.core.runtime import sample_rng
from src.core.targets import ORGANS
from src.ct.windows import WINDOWS
from src.data.selection import even_indices
from src.probe.frozen import GRID, FrozenNet, HeldOut, cut, grid_starts

BLOCKS = 6
"""Parts of a series along the body, each with the same number of slices."""
SLICES, MIN_SLICES = 24, 200
"""Slices per series, and minimum in total: with few series, more are taken of each."""
TILES, MIN_TILES = 16, 400
"""Tiles per series and organ, and minimum per organ in total."""
_BODY_HU = -150


@dataclass(frozen=True)
class ProbeSet:
    """M labelled features."""

    features: np.ndarray
    """float32 (M, width)"""
    target: np.ndarray
    """(M,): int64 organ label, 0 for other tissue; or float64 relative height, 0 head to 1 feet"""
    patient: np.ndarray
    """(M,) patient_id"""
    block: np.ndarray
    """int64 (M,) block along the body, 0 head to `BLOCKS` - 1 feet"""
    extent_mm: np.ndarray
    """float64 (M,) distance from the first to the last slice of the series"""

    def __len__(self) -> int:
        return len(self.target)

    def take(self, chosen: np.ndarray) -> "ProbeSet":
        """Select rows by a mask or by indices."""
        return ProbeSet(*(value[chosen] for value in vars(self).values()))


def collect(net: FrozenNet, held_out: HeldOut, seed: int) -> tuple[ProbeSet, ProbeSet]:
    """Compute features for the two probes: tiles of the series with masks, slices of all series.

    Tiles are a third of the image wide, as in the shared geometry of placing. Their centres are drawn from
    all pixels of an organ, or of other body tissue, the same number for each. They depend on the seed and the
    set, not on the network.
    """
    series = held_out.series
    count = max(SLICES, -(-MIN_SLICES // len(series)))
    ids = zip(series["patient_id"], series["series_id"], strict=True)
    has_masks = [held_out.dataset.has_masks(*pair) for pair in ids]
    per_organ = max(TILES, -(-MIN_TILES // max(1, sum(has_masks))))
    organ_parts, slice_parts = [], []
    for number in progress(range(len(series)), desc="probe"):
        stack = read_stack(net, held_out, series.iloc[number], count)
        features = slice_features(net, stack.images)
        slice_parts.append(_label(features, stack.height, np.arange(len(stack.indices)), stack))
        if not has_masks[number]:
            continue
        rng = sample_rng(seed, 0, number)
        place, centre, organ = choose_centres(held_out, stack, per_organ, rng)
        tiles = centred_tiles(stack.images, place, centre, net.tile)
        organ_parts.append(_label(net.embed(tiles)["features"], organ, place, stack))
    return join(organ_parts), join(slice_parts)


def slice_features(net: FrozenNet, images: np.ndarray) -> np.ndarray:
    """Mean features of the nine tiles of slices: uint8 (S, T, 3 tiles, 3 tiles, C) -> float32 (S, width)."""
    tiles = np.concatenate([cut(each, grid_starts(net.tile), net.tile) for each in images])  # (9 S, T, ...)
    return net.embed(tiles)["features"].reshape(len(images), GRID**2, -1).mean(axis=1)


def join(parts: Sequence[ProbeSet]) -> ProbeSet:
    """Join several sets; an empty set if there are none."""
    if not parts:
        none = np.empty(0)
        return ProbeSet(np.empty((0, 0), np.float32), none.astype(np.int64), none.astype(str), none, none)
    return ProbeSet(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))


def slice_neighbours(z_mm: np.ndarray, indices: np.ndarray, count: int, step_mm: float) -> np.ndarray:
    """Return the slices nearest to `count` heights `step_mm` apart, centred on each slice of `indices`.

    Args:
        z_mm: (n,) heights of all slices of the series, decreasing.

    Returns:
        int64 (S, count), head to feet; the end slices repeat beyond the series.
    """
    steps = (np.arange(count) - (count - 1) / 2) * step_mm
    heights = z_mm[indices][:, None] - steps  # (S, count)
    return np.abs(heights[:, :, None] - z_mm).argmin(axis=-1)


@dataclass(frozen=True)
class SliceStack:
    """Some slices of a series."""

    row: pd.Series
    indices: np.ndarray
    """int64 (S,) indices of the slices, head to feet"""
    images: np.ndarray
    """uint8 (S, T, 3 tiles, 3 tiles, C), the network's input around each slice"""
    height: np.ndarray
    """float64 (S,) relative height, 0 head to 1 feet"""
    extent_mm: float


def read_stack(net: FrozenNet, held_out: HeldOut, row: pd.Series, count: int) -> SliceStack:
    indices = even_indices(int(row["slices"]), min(count, int(row["slices"])))
    z_mm = held_out.dataset.z_mm(row["patient_id"], row["series_id"])
    depth, side = net.slices if net.is_volume else 1, GRID * net.tile
    voxel_mm = float(row["pixel_mm"]) * held_out.dataset.size / side
    shown = slice_neighbours(z_mm, indices, depth, voxel_mm)  # (S, T)
    images = held_out.read(row["patient_id"], row["series_id"], shown.ravel(), side)
    extent_mm = float(z_mm[0] - z_mm[-1])
    height = (z_mm[0] - z_mm[indices]) / max(extent_mm, 1e-6)
    return SliceStack(row, indices, images.reshape(*shown.shape, *images.shape[1:]), height, extent_mm)


def choose_centres(
    held_out: HeldOut, stack: SliceStack, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose pixels of each organ and of other tissue, `count` of each if there are enough.

    Returns:
        int64 (M,) index into `stack.indices`, float64 (M, 2) row and column as fractions of the image, int64
        (M,) label.
    """
    ids = (stack.row["patient_id"], stack.row["series_id"])
    masks = held_out.dataset.read_masks(*ids, stack.indices)  # (S, size, size)
    greys = held_out.dataset.read_slices(*ids, stack.indices)[..., 0]
    is_body = np.stack([body_tissue(grey, held_out.dataset.windows[0]) for grey in greys])
    chosen, labels = [], []
    for label in (0, *ORGANS.values()):
        pixels = np.argwhere((masks == label) & (is_body | (label > 0)))
        chosen.append(rng.permutation(pixels)[:count])
        labels.append(np.full(len(chosen[-1]), label))
    pixels = np.concatenate(chosen)  # (M, 3)
    return pixels[:, 0], (pixels[:, 1:] + 0.5) / held_out.dataset.size, np.concatenate(labels)


def centred_tiles(images: np.ndarray, place: np.ndarray, centre: np.ndarray, tile: int) -> np.ndarray:
    """Cut tiles around given centres.

    Args:
        images: (S, T, side, side, C).
        place: (M,) index of each tile's slice in S.
        centre: (M, 2) row and column as fractions of the side.

    Returns:
        (M, T, tile, tile, C).
    """
    starts = np.floor(centre * images.shape[2] - tile / 2).astype(np.int64)
    pairs = zip(place, starts, strict=True)
    return np.concatenate([cut(images[at], start[None], tile) for at, start in pairs])


def body_tissue(grey: np.ndarray, window: str) -> np.ndarray:
    """Segment the body without its air: bool (H, W) of a slice (H, W) in a window of that name.

    The largest component above -150 HU; an opening separates the patient from the table.
    """
    dense = (grey > WINDOWS[window].grey(np.float64(_BODY_HU))).astype(np.uint8)
    opened = cv2.morphologyEx(dense, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _, parts, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if len(stats) == 1:
        return np.zeros(grey.shape, dtype=bool)
    return parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()


def _label(features: np.ndarray, target: np.ndarray, place: np.ndarray, stack: SliceStack) -> ProbeSet:
    """Make the set of one series; `place` (M,) is the index of each row's slice in `stack.indices`."""
    return ProbeSet(
        features,
        target,
        np.full(len(target), stack.row["patient_id"]),
        place * BLOCKS // len(stack.indices),
        np.full(len(target), stack.extent_mm),
    )
