"""Random changes of single crops, drawn once a crop and shared by its slices. Position labels stay.

A turned or recoloured crop is still of the place where it was cut, and the network has to find that out in
spite of the change. Random crops and base crops are changed alike.
"""

import numpy as np

from src.nn.augmentation import AppearanceChange

_LARGEST_SHIFT = 0.1 * 255


class CropChanges:
    """Flips, quarter turns, shifts of the grey levels (VoCo 3D), and changes of appearance.

    Args:
        flip: probability along each of z, y and x.
        rotate90: probability of one to three quarter turns in the plane.
        shift: probability of adding one number, up to a tenth of the range of grey levels, cut off at black
            and white.
        appearance: strength of `AppearanceChange`.
    """

    def __init__(self, *, flip: float, rotate90: float, shift: float, appearance: float) -> None:
        self.flip, self.rotate90, self.shift = flip, rotate90, shift
        self.appearance = AppearanceChange(appearance) if appearance else None

    def apply(self, tiles: np.ndarray, rng: np.random.Generator) -> None:
        """Change uint8 tiles (K, T, tile, tile, C) in place, each crop on its own."""
        crops = len(tiles)
        # everything is drawn, used or not: switching one change on leaves the others as they were
        flips = rng.random((crops, 3)) < self.flip
        turns = rng.integers(1, 4, crops) * (rng.random(crops) < self.rotate90)
        shifts = rng.uniform(-_LARGEST_SHIFT, _LARGEST_SHIFT, crops) * (rng.random(crops) < self.shift)
        for crop in range(crops):
            tile = tiles[crop]  # (T, tile, tile, C)
            if flips[crop].any():
                tiles[crop] = np.flip(tile, axis=np.flatnonzero(flips[crop]))
            if turns[crop]:
                tiles[crop] = np.rot90(tile, turns[crop], axes=(1, 2))
            if shifts[crop]:
                tiles[crop] = np.clip(tile + np.int16(round(shifts[crop])), 0, 255)
            if self.appearance:
                tiles[crop] = self.appearance(tile, rng)
