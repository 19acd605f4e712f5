"""A sample of a series' slices on a coarse grid, and which of them show a body."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from src.ct.windows import AIR_HU, Window

DENSE_HU = -300
"""Above lung, blankets and the foam of the table; below fat."""

BODY_MM2 = 2000.0
"""Smallest area of a body in a slice."""

_BODY_FRACTION = 0.02  # of an image that is smaller than a body
_GRID_MM = 4.0
_KEPT_BYTES = 64 << 20
_FULL_RANGE_HU = (-1000, 400)  # an 8-bit source with a narrower range cannot show air, or bone


def shows_body(hu: np.ndarray, pixel_mm: tuple[float, float], lowest_hu: float = AIR_HU) -> bool:
    """Return whether a slice (rows, cols) shows a body, rather than air alone or one value everywhere.

    Args:
        lowest_hu: lowest HU that an 8-bit source can hold.
    """
    grid = _coarse(hu, pixel_mm)
    dense = np.count_nonzero(grid > max(DENSE_HU, lowest_hu)) / grid.size
    image_mm2 = hu.size * pixel_mm[0] * pixel_mm[1]
    return dense > min(BODY_MM2 / image_mm2, _BODY_FRACTION) and (dense < 1 or np.ptp(grid) > 0)


def _coarse(hu: np.ndarray, pixel_mm: tuple[float, float]) -> np.ndarray:
    row_step, col_step = (max(1, round(_GRID_MM / mm)) for mm in pixel_mm)
    return hu[::row_step, ::col_step]


class SampledSlices:
    """Slices of a series on a grid of about 4 mm, and the first of them as decoded.

    Args:
        slices: index and HU (rows, cols), in the order of the series.
        pixel_mm: spacing of rows and columns.
        z_mm: (slices of the whole series,) positions.
        source_window: window that an 8-bit source can express; None for other sources.
    """

    def __init__(
        self,
        slices: Iterable[tuple[int, np.ndarray]],
        pixel_mm: tuple[float, float],
        z_mm: np.ndarray,
        source_window: Window | None = None,
    ) -> None:
        lowest_hu = AIR_HU if source_window is None else source_window.lowest_hu
        indices, body, grids = [], [], []
        self.decoded: dict[int, np.ndarray] = {}
        """Slices by index, 64 MB at most."""
        n_bytes = 0
        for index, hu in slices:
            indices.append(index)
            body.append(shows_body(hu, pixel_mm, lowest_hu))
            grids.append(np.minimum(_coarse(hu, pixel_mm), np.iinfo(np.int16).max).astype(np.int16))
            n_bytes += hu.nbytes
            if n_bytes <= _KEPT_BYTES:
                self.decoded[index] = hu
        self.image_mm = (hu.shape[0] * pixel_mm[0], hu.shape[1] * pixel_mm[1])
        self.indices = np.array(indices)
        self.z_mm = z_mm[self.indices]
        self.shows_body = np.array(body)
        self.hu = np.stack(grids)
        """(N, rows, cols)"""
        self.is_full_range = source_window is None or (
            source_window.lowest_hu <= _FULL_RANGE_HU[0]
            and source_window.lowest_hu + source_window.width_hu >= _FULL_RANGE_HU[1]
        )

    @cached_property
    def body_range(self) -> tuple[int, int]:
        """Indices in the series of the first and last slice that show a body."""
        shown = self.indices[self.shows_body]
        return (int(shown[0]), int(shown[-1])) if shown.size else (0, -1)
