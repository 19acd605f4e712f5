"""Contact sheets of one prepared series: evenly spaced slices with organ outlines.

python -m src.data.preview --data data/phantom_train --output docs/images/phantom.png
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np

from src.core.config import check_range, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import atomic_path
from src.core.log import say
from src.core.targets import ORGANS
from src.ct.windows import WINDOWS
from src.data.png import write_png
from src.data.prepared import PreparedDataset, image_folder, mask_folder, read_slices
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
"""RGB colours that are distinct on grey and for most colour-blind readers."""

_CAPTION_PX = 24
_GAP_PX = 2
_MIN_PX = 192
"""Minimum side in pixels on mask sheets, to which smaller slices are enlarged: outlines are 1 px wide."""


@dataclass(frozen=True)
class PreviewOptions:
    """Options of `python -m src.data.preview`."""

    data: Path
    """Prepared data set."""

    output: Path
    """PNG file to write."""

    series: str | None = None
    """series_id to draw; default: the first series with masks, else the first one."""

    columns: int = 6
    """Number of evenly spaced slices, side by side from head to feet."""

    def __post_init__(self) -> None:
        check_range(self, "columns", at_least=1)
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"option --output must end in .png, got {self.output}")


def contact_sheet(
    dataset: Path, patient_id: str, series_id: str, windows: Sequence[str], size: int, columns: int = 6
) -> np.ndarray:
    """Draw a series of a prepared data set: uint8 (H, W, 3) in RGB, `columns` slices wide.

    Organs are outlined, and listed in a legend, if the data set has masks of the series.
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
        strips.append(_caption(text, width))
        strips.append(_slice_row(images[..., channel], masks))
    if masks is not None:
        strips.append(_legend(width, np.unique(masks)))
    return np.concatenate(strips)


def mask_sheet(
    dataset: PreparedDataset, patient_id: str, series_id: str, predicted: Path, columns: int = 8
) -> np.ndarray:
    """Draw predicted below true masks of a series: uint8 (H, W, 3) in RGB, `columns` slices wide.

    Organs are outlined in the first window. Slices are spread evenly over those with an organ in either mask,
    or over all if there are none. Without true masks, only the predicted row is drawn.

    Args:
        predicted: folder of the series' predicted masks.
    """
    size, count = dataset.size, sum(1 for _ in predicted.glob("*.png"))
    folders = {"predicted": predicted}
    if dataset.has_masks(patient_id, series_id):
        folders = {"true": mask_folder(dataset.folder, patient_id, series_id)} | folders
    shown = np.zeros(count, dtype=bool)
    for folder in folders.values():
        for index in range(count):  # one by one: a series may be long
            shown[index] |= read_slices(folder, [index], size, 1).any()
    within = np.flatnonzero(shown) if shown.any() else np.arange(count)
    indices = within[even_indices(len(within), columns)]
    zoom = max(1, round(_MIN_PX / size))
    images = _enlarge(dataset.read_slices(patient_id, series_id, indices)[..., 0], zoom)  # (T, H, W)
    masks = {
        name: _enlarge(read_slices(folder, indices, size, 1)[..., 0], zoom)
        for name, folder in folders.items()
    }
    strips = []
    for name, labels in masks.items():
        row = _slice_row(images, labels)
        strips += [_caption(f"{name}: slices {indices[0]} to {indices[-1]} of {count}", row.shape[1]), row]
    strips.append(_legend(strips[-1].shape[1], np.unique(list(masks.values()))))
    return np.concatenate(strips)


def _enlarge(slices: np.ndarray, zoom: int) -> np.ndarray:
    return slices.repeat(zoom, axis=1).repeat(zoom, axis=2)


def _slice_row(images: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """Convert grey slices (T, H, W), and their label maps, to one RGB strip."""
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


def _caption(text: str, width: int) -> np.ndarray:
    """Draw a strip of `width` pixels with a line of text, uint8 (H, width, 3)."""
    strip = np.zeros((_CAPTION_PX, width, 3), dtype=np.uint8)
    return _write(strip, text, left=6, colour=(220, 220, 220))


def _legend(width: int, labels: np.ndarray) -> np.ndarray:
    """Draw a strip with the names of the organs in `labels` in their colours, uint8 (H, width, 3)."""
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


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PreviewOptions, argv, prog="python -m src.data.preview", description=__doc__)
    dataset = PreparedDataset.open(options.data)
    patient_id, series_id = _choose_series(dataset, options.series)
    with atomic_path(options.output) as temporary:
        sheet = contact_sheet(
            dataset.folder, patient_id, series_id, dataset.windows, dataset.size, options.columns
        )
        write_png(temporary, sheet)
    say(f"series {series_id} of patient {patient_id}: {options.output}")


def _choose_series(dataset: PreparedDataset, series_id: str | None) -> tuple[str, str]:
    pairs = [pair for pair in dataset.slice_counts if series_id in (None, pair[1])]
    if not pairs:
        raise UserError(f"{dataset.folder} has no usable series {series_id or ''}".rstrip())
    return next((pair for pair in pairs if dataset.has_masks(*pair)), pairs[0])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
