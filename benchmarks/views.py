"""Random views of tiles for the rivals of VoCo, and patches that masked modelling hides.

All parameters are drawn on the CPU from a given generator. The device applies them in a few batched
operations, without draws of its own: views are equal on CPU and GPU up to rounding.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from src.voco.appearance import Appearance, draw_appearance

_LONGEST = 4 / 3  # sides of the crop of a view: of Inception, as SimCLR and BYOL take them
_FLIPPED = 0.5


class ViewMaker:
    """Makes views of tiles: a random resized crop, a flip from left to right, a change of appearance.

    This is the order of SimCLR (arXiv 2002.05709, appendix A) and BYOL (arXiv 2006.07733, appendix B). The
    changes of appearance are those of 2D-VoCo plus, in place of changes of colour.

    Args:
        appearance: changes the grey levels, on the device of the tiles.
        strength: 0 to 1, of these changes, as `--appearance`.
        smallest_area: least share of a tile's area that a view shows, 0 to 1.
    """

    def __init__(self, appearance: Appearance, strength: float, smallest_area: float) -> None:
        self.appearance, self.strength, self.smallest_area = appearance, strength, smallest_area

    def __call__(self, tiles: Tensor, rng: np.random.Generator) -> Tensor:
        """Make one view of every tile: uint8 (M, T, side, side, C) -> the same shape."""
        count, side = len(tiles), tiles.shape[2]
        boxes = draw_boxes(count, self.smallest_area, rng)
        changes = draw_appearance(count, self.strength, side, rng)
        boxes, changes = (torch.from_numpy(drawn).to(tiles.device) for drawn in (boxes, changes))
        return self.appearance(resize_boxes(tiles, boxes), changes)


def draw_boxes(count: int, smallest_area: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the part of a tile that each view shows: of uniform area, at a uniform place.

    The ratio of the sides is log-uniform in 3/4 to 4/3; a side is at most that of the tile.

    Returns:
        float32 (count, 4): width, height, and column and row of the centre, from -1 to 1 in the tile. A
        negative width is a flip from left to right.
    """
    area = rng.uniform(smallest_area, 1, count)
    ratio = np.exp(rng.uniform(-np.log(_LONGEST), np.log(_LONGEST), count))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1)
    centres = rng.uniform(-1, 1, (count, 2)) * (1 - sides)
    sides[:, 0] *= np.where(rng.random(count) < _FLIPPED, -1, 1)
    return np.concatenate([sides, centres], axis=1).astype(np.float32)


def resize_boxes(tiles: Tensor, boxes: Tensor) -> Tensor:
    """Show the box of each tile in the tile's size, bilinearly: uint8 (M, T, side, side, C) -> the same."""
    slices, channels = tiles.shape[1], tiles.shape[-1]
    images = tiles.permute(0, 1, 4, 2, 3).flatten(1, 2).float()  # (M, T*C, side, side)
    scale = torch.diag_embed(boxes[:, :2])  # (M, 2, 2)
    grid = affine_grid(torch.cat([scale, boxes[:, 2:, None]], dim=2), list(images.shape), align_corners=False)
    shown = grid_sample(images, grid, padding_mode="border", align_corners=False)
    return shown.round_().byte().unflatten(1, (slices, channels)).permute(0, 1, 3, 4, 2).contiguous()


def draw_hidden(count: int, side: int, patch: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the patches that are hidden of each tile: the same number of all, rounded up as in SimMIM.

    Returns:
        bool (count, side, side), True where hidden.
    """
    cells = side // patch
    hidden = rng.random((count, cells**2)).argsort(axis=1) < np.ceil(share * cells**2)
    return hidden.reshape(count, cells, cells).repeat(patch, axis=1).repeat(patch, axis=2)
