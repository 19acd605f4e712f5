"""CT windows: conversion of Hounsfield units to the 8-bit grey levels of a prepared data set."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import cv2
import numpy as np

from src.core.errors import UserError

AIR_HU = -1024
"""HU of everything outside the patient: padding, and values stored below air."""


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

    @property
    def lowest_hu(self) -> float:
        """HU at and below which pixels are black."""
        return self.centre_hu - self.width_hu / 2

    @classmethod
    def of_range(cls, lowest_hu: float, highest_hu: float, step_hu: float) -> "Window":
        """Make a window of the integer HU that levels `step_hu` apart express, to half a step above the last.

        The lower end is not extended: it is black, so it must not be above `lowest_hu`.
        """
        low, high = math.ceil(lowest_hu), math.floor(highest_hu + step_hu / 2)
        return cls(f"{low}..{high} HU", (low + high) / 2, high - low)

    def contains(self, other: "Window") -> bool:
        """Whether the range of `other` lies inside this one."""
        return self.lowest_hu <= other.lowest_hu and (
            other.lowest_hu + other.width_hu <= self.lowest_hu + self.width_hu
        )


WINDOWS = MappingProxyType(
    {
        window.name: window
        for window in (
            Window("soft", 50, 400),  # the usual abdominal window
            Window("organ", 80, 160),  # lacerations contrast with an enhanced organ
            Window("wide", -50, 1400),  # free gas, fat, organs and active bleeding all differ in grey
        )
    }
)
"""All supported windows by name."""


def get_windows(names: Iterable[str]) -> tuple[Window, ...]:
    """Return the windows with these names, in this order. Raises `UserError`: an unknown name."""
    for name in names:
        if name not in WINDOWS:
            raise UserError(f"unknown window {name!r}; there are {', '.join(WINDOWS)}")
    return tuple(WINDOWS[name] for name in names)


def parse_window(text: str) -> Window:
    """Parse a window name, or centre and width in HU such as "40/350". Raises `UserError`: neither."""
    if text in WINDOWS:
        return WINDOWS[text]
    try:
        centre_hu, width_hu = map(float, text.split("/"))
    except ValueError:
        centre_hu, width_hu = 0.0, 0.0
    if not (math.isfinite(centre_hu) and math.isfinite(width_hu) and width_hu > 0):
        raise UserError(f"{text!r} is no window: name {', '.join(WINDOWS)}, or centre/width such as 40/350")
    return Window(text, centre_hu, width_hu)


def apply_windows(hu: np.ndarray, windows: tuple[Window, ...]) -> np.ndarray:
    """Convert an image to grey levels: (H, W) HU -> uint8 (H, W, C), contiguous, channel k = window k.

    int16 images use a lookup table of the formula over all 65,536 values, which is faster and gives equal
    levels; other types (HU with fractions) use the formula directly.
    """
    if hu.dtype != np.int16:
        return np.stack([window.grey(hu) for window in windows], axis=-1)
    levels = _table(windows).take(hu.view(np.uint16), mode="wrap")  # (H, W); every index is inside the table
    grey = levels[..., np.newaxis].view(np.uint8)  # (H, W, 1, 2 or 4)
    return cv2.cvtColor(grey, cv2.COLOR_BGRA2BGR) if len(windows) == 3 else grey  # drops the fourth byte


@lru_cache(maxsize=8)
def _table(windows: tuple[Window, ...]) -> np.ndarray:
    """Build the lookup table (65536,), indexed by the bit pattern of an int16 HU.

    Each entry is one number whose bytes are the levels in the windows' order; three are padded to four.
    Looking up one number per pixel takes a third of the time of looking up rows of three bytes.
    """
    hu = np.arange(65536, dtype=np.uint16).view(np.int16)
    n_bytes = 4 if len(windows) == 3 else len(windows)
    levels = np.zeros((65536, n_bytes), dtype=np.uint8)
    for channel, window in enumerate(windows):
        levels[:, channel] = window.grey(hu)
    table = levels.view(f"u{n_bytes}").ravel()
    table.flags.writeable = False
    return table
