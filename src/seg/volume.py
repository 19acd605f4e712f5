"""Masks of one series in memory: those that segment.py would write of it."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from src.core.errors import UserError
from src.data.organ_tables import OrganMeasures, voxel_volumes_ml
from src.data.selection import neighbour_indices
from src.seg.components import ComponentScan
from src.seg.model import SegmenterPair, SegmenterSpec
from src.seg.stream import Chunk, with_neighbours


def segment_volume(
    pair: SegmenterPair,
    spec: SegmenterSpec,
    images: np.ndarray,
    z_mm: np.ndarray,
    pixel_mm: float,
    *,
    device: torch.device,
    chunk: int = 16,
    check: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Predict, clean and measure the organs of a series.

    Args:
        pair: on `device`, in evaluation mode.
        images: uint8 (Z, H, W, windows of the spec), head to feet.
        z_mm: (Z,) positions, falling.
        pixel_mm: side of a pixel.
        chunk: slices that pass the networks together.
        check: called before each chunk; what it raises ends the work.

    Returns:
        Label maps uint8 (Z, H, W), and a row an organ as `OrganMeasures.organs`.

    Raises:
        UserError: a single slice, whose voxels have no known size.
        FloatingPointError: the networks give what is no number.
    """
    if len(z_mm) < 2:
        raise UserError("organs of a single slice have no volume to judge them by")
    masks, scan = np.empty(images.shape[:3], dtype=np.uint8), ComponentScan()
    for first in range(0, len(images), chunk):
        part = _chunk(images, first, min(first + chunk, len(images)), spec.slices)
        check()
        with torch.inference_mode():
            probabilities = pair.probabilities(with_neighbours(part, device))
        if not probabilities.isfinite().all():
            raise FloatingPointError("the segmenter gives probabilities that are not finite")
        for index, mask in enumerate(probabilities.argmax(1).to(torch.uint8).cpu().numpy(), first):
            masks[index] = mask
            scan.add(mask)
    clean_up, measures = scan.clean_up(voxel_volumes_ml(pixel_mm, z_mm)), OrganMeasures()
    for index, mask in enumerate(masks):
        masks[index] = clean_up.apply(mask, index)
        measures.add(masks[index])
    return masks, measures.organs(pixel_mm, z_mm)


def _chunk(images: np.ndarray, first: int, stop: int, slices: int) -> Chunk:
    neighbours = neighbour_indices(np.arange(first, stop), slices, len(images))
    used, places = np.unique(neighbours, return_inverse=True)
    places = torch.from_numpy(places.reshape(neighbours.shape))
    return Chunk(0, first, stop == len(images), torch.from_numpy(images[used]), places, "")
