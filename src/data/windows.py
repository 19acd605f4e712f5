"""CT windows: how Hounsfield units become the 8-bit grey levels of a prepared data set."""

from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from src.core.errors import UserError

AIR_HU = -1024
"""What lies outside the patient: padding, and anything a scanner stored below air."""


@dataclass(frozen=True)
class Window:
    """A named range of Hounsfield units, `width_hu` wide around `centre_hu`."""

    name: str
    centre_hu: float
    width_hu: float

    def grey(self, hu: np.ndarray) -> np.ndarray:
        """`round(255 * clip((hu - centre + width / 2) / width, 0, 1))` as uint8; halves round to even."""
        share = (np.asarray(hu, dtype=np.float64) - self.centre_hu + self.width_hu / 2) / self.width_hu
        return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


WINDOWS = MappingProxyType(
    {
        window.name: window
        for window in (
            Window("soft", 50, 400),  # the usual abdominal window
            Window("organ", 80, 160),  # a laceration stands out of an enhanced organ
            Window("wide", -50, 1400),  # free gas, fat, organ and fresh contrast are all different greys
        )
    }
)
"""Every window the kit knows, by name."""

MAX_WINDOWS = 3
"""Channels of a PNG that any RGB reader sees."""


def get_windows(names: tuple[str, ...] | list[str]) -> tuple[Window, ...]:
    """The windows of these names, in this order.

    Raises:
        UserError: no name, more than three, a repeated or an unknown one.
    """
    if not 1 <= len(names) <= MAX_WINDOWS or len(set(names)) != len(names):
        raise UserError(f"--windows takes one to three different windows, got: {' '.join(names) or 'none'}")
    for name in names:
        if name not in WINDOWS:
            raise UserError(f"unknown window {name!r} in --windows; there are {', '.join(WINDOWS)}")
    return tuple(WINDOWS[name] for name in names)


def apply_windows(hu: np.ndarray, windows: tuple[Window, ...]) -> np.ndarray:
    """Grey levels of an image: (H, W) in HU -> uint8 (H, W, C), channel k = window k.

    int16 images go through a table of the formula over all 65,536 values, faster than the formula and to
    the same levels; other types (HU with fractions) go through the formula itself.
    """
    if hu.dtype == np.int16:
        return _table(windows).take(hu.view(np.uint16), axis=0)
    return np.stack([window.grey(hu) for window in windows], axis=-1)


@lru_cache(maxsize=8)
def _table(windows: tuple[Window, ...]) -> np.ndarray:
    """(65536, C) uint8, indexed by the bit pattern of an int16 HU."""
    hu = np.arange(65536, dtype=np.uint16).view(np.int16)
    table = np.stack([window.grey(hu) for window in windows], axis=-1)
    table.flags.writeable = False
    return table
