"""Pictures of the network's predictions: random crops, bases, labels and similarities.

The bases of a volume, side by side, form its canvas, on which the position of a random crop is outlined. Next
to it are the labels and the predicted similarities on the same grid, with the most similar base framed.
"""

import cv2
import numpy as np
from torch import Tensor

from src.voco.dataset import VolumeSample

VOLUMES = 4
"""Maximum number of volumes of a batch in a picture."""

CELL_PX = 72
"""Side of a grid cell in the picture, large enough for two decimals."""

_GAP_PX = 8
_CAPTION_PX = 22
_PAPER = (255, 255, 255)
_INK = (0, 0, 0)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.5
_OUTLINE = (255, 140, 0)
_RIGHT, _WRONG = (0, 190, 80), (230, 30, 60)


def draw_predictions(
    batch: VolumeSample, similarity: Tensor, grid: tuple[int, int, int], channel: int = 0
) -> np.ndarray:
    """Draw the first volumes of a batch: uint8 (H, W, 3) in RGB, one row per random crop.

    A row shows the random crop, the bases with the crop's true position outlined, the labels, and the
    similarities with the highest one framed: green if no base overlaps the crop more, else red. Images are
    the middle slice of a crop in one channel. A grid with several cells along z is drawn as planes, head
    to feet.

    Args:
        batch: B volumes, tiles (B, R + N, T, h, w, C), random crops first.
        similarity: (B, R, N) cosine of random crops and bases.
        grid: bases along z, y and x; their product is N.
        channel: channel to draw: the first window, with neighbours that of the middle one.
    """
    middle = batch.tiles.shape[2] // 2
    tiles = batch.tiles[:VOLUMES, :, middle, :, :, channel].cpu().numpy()  # (B, R + N, h, w)
    labels, similarities = (values[:VOLUMES].float().cpu().numpy() for values in (batch.label, similarity))
    numbers = batch.series_row[:VOLUMES].tolist()
    crops = labels.shape[1]
    rows = []
    for volume, number in enumerate(numbers):
        bases = tiles[volume, crops:]
        for crop in range(crops):
            label, predicted = labels[volume, crop], similarities[volume, crop]
            is_right = label[predicted.argmax()] == label.max()
            panels = {
                f"volume {number}, crop {crop + 1}": _to_rgb(tiles[volume, crop], CELL_PX * grid[1]),
                "bases, the crop outlined": _draw_canvas(bases, label, grid),
                "label": _draw_grid(label, grid, frame=None),
                f"similarity: {'right' if is_right else 'wrong'}": _draw_grid(
                    predicted, grid, frame=_RIGHT if is_right else _WRONG
                ),
            }
            rows.append(np.concatenate([_caption(*item) for item in panels.items()], axis=1))
    return np.concatenate(rows)


def crop_places(label: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Compute the first corner of random crops in units of a base: (..., N) labels -> (..., 3) float z, y, x.

    This is exact: along an axis the label decreases linearly with the distance, so that it interpolates the
    positions of the bases.
    """
    return label @ np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), axis=-1)  # (N, 3) places


def _draw_canvas(bases: np.ndarray, label: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Draw the bases (N, h, w) in position, planes side by side, with the crop's outline on each plane."""
    z, y, x = crop_places(label, grid)
    first, last = (tuple(round(CELL_PX * place) for place in corner) for corner in ((x, y), (x + 1, y + 1)))
    planes = []
    for height, plane in enumerate(_planes(bases, grid)):
        image = np.concatenate(
            [np.concatenate([_to_rgb(tile, CELL_PX) for tile in row], axis=1) for row in plane]
        )
        if abs(height - z) < 1:
            cv2.rectangle(image, first, (last[0] - 1, last[1] - 1), _OUTLINE, 2)
        planes.append(image)
    return _side_by_side(planes)


def _draw_grid(values: np.ndarray, grid: tuple[int, int, int], frame: tuple[int, ...] | None) -> np.ndarray:
    """Draw values (N,) as cells, black at 0 and white at 1, with their numbers; the highest is framed."""
    highest = np.arange(len(values)) == values.argmax()
    planes = []
    for plane, is_highest in zip(_planes(values, grid), _planes(highest, grid), strict=True):
        image = np.zeros((CELL_PX * grid[1], CELL_PX * grid[2], 3), dtype=np.uint8)
        for (row, column), value in np.ndenumerate(plane):
            cell = image[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX]
            cell[:] = round(255 * float(np.clip(value, 0, 1)))
            number = f"{value:.2f}"
            (width, height), _ = cv2.getTextSize(number, _FONT, _FONT_SCALE, 1)
            corner = (CELL_PX - width) // 2, (CELL_PX + height) // 2
            _write(cell, number, corner, _INK if value > 0.5 else _PAPER)
            if frame and is_highest[row, column]:
                cv2.rectangle(image, *_corners(row, column), frame, 4)
        planes.append(_rule(image))
    return _side_by_side(planes)


def _planes(values: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Reshape (N, ...) in the order of the bases to (z, y, x, ...)."""
    return values.reshape(*grid, *values.shape[1:])


def _corners(row: int, column: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last pixel of a frame inside a cell as (x, y), as OpenCV expects."""
    left, top = column * CELL_PX + 3, row * CELL_PX + 3
    return (left, top), (left + CELL_PX - 7, top + CELL_PX - 7)


def _rule(image: np.ndarray) -> np.ndarray:
    """Draw thin lines between the cells of a grid, in place."""
    image[::CELL_PX] = image[:, ::CELL_PX] = 128
    image[-1] = image[:, -1] = 128
    return image


def _to_rgb(tile: np.ndarray, side: int) -> np.ndarray:
    """Convert grey (h, w) to RGB (side, side, 3)."""
    enlarged = cv2.resize(tile, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.repeat(enlarged[..., None], 3, axis=-1)


def _side_by_side(planes: list[np.ndarray]) -> np.ndarray:
    """Join planes of the same height with gaps."""
    gap = np.full((len(planes[0]), _GAP_PX, 3), 255, dtype=np.uint8)
    parts = [part for plane in planes for part in (gap, plane)]
    return np.concatenate(parts[1:], axis=1)


def _caption(text: str, panel: np.ndarray) -> np.ndarray:
    """Add a name above a panel and a margin around both."""
    margins = (_CAPTION_PX, _GAP_PX, _GAP_PX, _GAP_PX)
    framed = cv2.copyMakeBorder(panel, *margins, cv2.BORDER_CONSTANT, value=_PAPER)
    return _write(framed, text, (_GAP_PX, _CAPTION_PX - 7), _INK)


def _write(image: np.ndarray, text: str, origin: tuple[int, int], colour: tuple[int, ...]) -> np.ndarray:
    """Write text with its lower left corner at (x, y)."""
    return cv2.putText(image, text, origin, _FONT, _FONT_SCALE, colour, 1, cv2.LINE_AA)
