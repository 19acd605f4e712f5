"""A contact sheet of one prepared series: a row a window, evenly spaced slices, organs outlined."""

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

from src.ct.organ_labels import ORGANS
from src.ct.windows import WINDOWS
from src.data.prepared import image_folder, mask_folder, read_slices
from src.data.selection import even_indices

ORGAN_COLOURS = MappingProxyType(
    {
        "liver": (230, 140, 60),
        "spleen": (90, 200, 90),
        "left kidney": (80, 170, 255),
        "right kidney": (200, 120, 255),
        "bowel": (245, 220, 70),
    }
)
"""RGB, told apart on grey and by most colour-blind readers."""

_CAPTION_PX = 24
_GAP_PX = 2


def contact_sheet(
    dataset: Path, patient_id: str, series_id: str, windows: Sequence[str], size: int, columns: int = 6
) -> np.ndarray:
    """Draw a series of a prepared data set: uint8 (H, W, 3) in RGB, `columns` slices wide.

    Organs are outlined, and named in a legend, where the data set has masks of the series.
    """
    images_at, masks_at = (place(dataset, patient_id, series_id) for place in (image_folder, mask_folder))
    indices = even_indices(sum(1 for _ in images_at.glob("*.png")), columns)
    images = read_slices(images_at, indices, size, len(windows))  # (T, H, W, C)
    masks = read_slices(masks_at, indices, size, 1)[..., 0] if masks_at.is_dir() else None
    width = columns * (size + _GAP_PX) - _GAP_PX
    strips = []
    for channel, name in enumerate(windows):
        window = WINDOWS[name]
        text = f"{name}: centre {window.centre_hu:g} HU, width {window.width_hu:g} HU"
        strips.append(caption(text, width))
        strips.append(slice_row(images[..., channel], masks))
    if masks is not None:
        strips.append(legend(width, np.unique(masks)))
    return np.concatenate(strips)


def slice_row(images: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Grey slices (T, H, W), and their label maps, to one RGB strip."""
    tiles = []
    for index, image in enumerate(images):
        tile = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        if masks is not None:
            _outline_organs(tile, masks[index])
        tiles += [tile, np.zeros((len(tile), _GAP_PX, 3), dtype=np.uint8)]
    return np.concatenate(tiles[:-1], axis=1)


def _outline_organs(tile: np.ndarray, mask: np.ndarray) -> None:
    for organ, label in ORGANS.items():
        organ_mask = (mask == label).astype(np.uint8)
        contours, _ = cv2.findContours(organ_mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, ORGAN_COLOURS[organ], 1)


def caption(text: str, width: int) -> np.ndarray:
    """A strip of `width` pixels with a line of text, uint8 (H, width, 3)."""
    strip = np.zeros((_CAPTION_PX, width, 3), dtype=np.uint8)
    return _write(strip, text, left=6, colour=(220, 220, 220))


def legend(width: int, labels: np.ndarray) -> np.ndarray:
    """A strip that names the organs among `labels` in their colours, uint8 (H, width, 3)."""
    strip = np.zeros((_CAPTION_PX, width, 3), dtype=np.uint8)
    left = 6
    for organ, label in ORGANS.items():
        if label in labels:
            strip = _write(strip, organ, left, ORGAN_COLOURS[organ])
            left += 12 * len(organ)
    return strip


def _write(strip: np.ndarray, text: str, left: int, colour: tuple[int, int, int]) -> np.ndarray:
    origin = (left, _CAPTION_PX - 7)
    return cv2.putText(strip, text, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
