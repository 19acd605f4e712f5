"""Clean-up of organ masks by 3D components, one slice at a time: removes specks, labels kidneys by side.

A series may have thousands of slices, so the volume is never held in memory. The slices are read twice: the
first pass counts the pixels of the pieces (2D components) of each slice and records which pieces touch; the
second erases pieces of components that are too small, and relabels those of kidneys.

    scan = ComponentScan()
    for mask in masks:
        scan.add(mask)
    clean_up = scan.clean_up(voxel_ml)
    cleaned = (clean_up.apply(mask, index) for index, mask in enumerate(masks))
"""

from array import array
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from src.core.targets import ORGANS
from src.data.organ_tables import crop_organ

# A ball of 12 mm, about a hundredth of a kidney and a smaller fraction of other organs. A speck of that size
# would extend the organ's bounding box and slice range beyond the organ.
MIN_COMPONENT_ML = 1.0
"""Smaller components are removed."""

# An injured organ may be torn into pieces, so more than the largest component is kept; false positives are
# small in comparison. Bowel has several components in every patient: its loops may or may not touch, and a
# scan may cut them.
MIN_SHARE = MappingProxyType(
    {"liver": 0.25, "spleen": 0.25, "left kidney": 0.25, "right kidney": 0.25, "bowel": 0.0}
)
"""A component below this share of its organ's largest one is removed."""

# The middle of the body is near the middle of the image but not exactly there: an arm beside the trunk shifts
# it. So a kidney that crosses the middle of the image keeps the label that the network predicted.
ONE_SIDED = 0.95
"""A kidney component with this share of its pixels in one half of the image is the kidney of that side."""
ONE_LABEL = 0.75
"""A component with this share of its pixels under one label gets that label; else, with this share in half
of the image, it gets the label of that side. All others are treated as two touching kidneys and split at the
middle of the image."""

_LEFT_KIDNEY, _RIGHT_KIDNEY = ORGANS["left kidney"], ORGANS["right kidney"]
_KIDNEYS = _LEFT_KIDNEY  # label of both kidneys while pieces are searched
_SCANNED = tuple(label for label in ORGANS.values() if label != _RIGHT_KIDNEY)
_BOTH_KIDNEYS = np.arange(256, dtype=np.uint8)
_BOTH_KIDNEYS[_RIGHT_KIDNEY] = _KIDNEYS
_SUM_ERROR = 1e-9  # relative error of a sum of floats: a component of exactly the limit is kept


@dataclass(frozen=True)
class _Pieces:
    """2D components of an organ in a slice, numbered from 1, in a crop with corner (top, left)."""

    left: int
    top: int
    count: int
    organ: np.ndarray  # (h, w) 1 in every piece, else 0
    labels: np.ndarray  # (h, w) number of the piece, 0 outside

    def count_pixels(self) -> np.ndarray:
        """Return the number of pixels of each piece, (count,)."""
        return np.bincount(self.labels[self.organ.view(bool)])[1:]


class ComponentScan:
    """First pass over a series. Holds a few numbers per piece, and the pieces of the last slice."""

    def __init__(self) -> None:
        self._first = array("q", [0])  # index of each slice's first piece in the arrays below, then the end
        self._organ = array("B")
        self._pixels = array("q")
        self._sides = array("q")  # per piece of kidney: pixels labelled left, pixels in the half of the left
        self._links = array("q")  # pairs of pieces that touch
        # pieces of the last slice, by label, with the number of the first one
        self._before: dict[int, tuple[int, _Pieces]] = {}
        self._shape: tuple[int, ...] | None = None

    def add(self, mask: np.ndarray) -> None:
        """Add the next slice: (H, W) label map, uint8, the patient's left on the image's right.

        Pixels connect by sides and corners within a slice; pieces connect by overlap with those of the
        previous slice. The two kidneys count as one organ here.

        Raises:
            ValueError: the shape of the slice differs from earlier slices.
        """
        if self._shape not in (None, mask.shape):
            raise ValueError(f"a slice of shape {mask.shape} among slices of shape {self._shape}")
        self._shape = mask.shape
        now = {}
        for label in _SCANNED:
            pieces = _find_pieces(mask, label)
            if pieces is None:
                continue
            first = len(self._pixels)
            if label in self._before:
                first_before, before = self._before[label]
                links = _overlaps(before, pieces) + np.array([first_before, first])
                self._links.extend(links.ravel().tolist())
            self._organ.extend([label] * pieces.count)
            self._pixels.extend(pieces.count_pixels().tolist())
            if label == _KIDNEYS:
                self._sides.extend(_count_sides(mask, pieces).ravel().tolist())
            now[label] = first, pieces
        self._before = now
        self._first.append(len(self._pixels))

    def clean_up(self, voxel_ml: float | np.ndarray) -> "CleanUp":
        """Decide which pieces of the slices so far are kept, and with which label.

        Args:
            voxel_ml: volume of a voxel, or (slices,) for unevenly spaced slices.

        Raises:
            ValueError: volumes for another number of slices, or not all above 0.
        """
        first, organ, pixels = (np.array(numbers) for numbers in (self._first, self._organ, self._pixels))
        voxel_ml = np.broadcast_to(np.asarray(voxel_ml, dtype=np.float64), len(first) - 1)
        if not (voxel_ml > 0).all():
            raise ValueError("the volume of a voxel must be above 0")
        links = np.array(self._links).reshape(-1, 2)
        graph = coo_matrix((np.ones(len(links), dtype=bool), tuple(links.T)), shape=(len(pixels),) * 2)
        component = connected_components(graph, directed=False)[1]  # component of each piece
        piece_ml = np.repeat(voxel_ml, np.diff(first))  # volume of one pixel of each piece
        labelled_left, on_left = _sides_of_pieces(organ, self._sides)

        def total(of_pieces: np.ndarray) -> np.ndarray:
            return np.bincount(component, weights=of_pieces)

        # label of each component in the left and the right half of the image, and its volume there
        new_labels = np.zeros((len(total(pixels)), 2), dtype=np.uint8)
        new_labels[component] = organ[:, None]
        is_kidney = new_labels[:, 0] == _KIDNEYS
        counts = (total(of_pieces)[is_kidney] for of_pieces in (pixels, labelled_left, on_left))
        new_labels[is_kidney] = _label_kidneys(*counts)
        halves_ml = np.column_stack([total((pixels - on_left) * piece_ml), total(on_left * piece_ml)])
        is_one = new_labels[:, 0] == new_labels[:, 1]
        halves_ml[is_one] = total(pixels * piece_ml)[is_one, None]
        new_labels[halves_ml < _limit_ml(new_labels, halves_ml) * (1 - _SUM_ERROR)] = 0
        return CleanUp(first, organ, pixels, new_labels[component], labelled_left)


@dataclass(frozen=True)
class CleanUp:
    """Second pass over a series, made by `ComponentScan.clean_up`."""

    first: np.ndarray
    """(slices + 1,) index of each slice's first piece in the arrays below, then the end of the last slice"""
    organ: np.ndarray
    """(pieces,) organ label; that of the left kidney for both kidneys"""
    pixels: np.ndarray
    """(pieces,) number of pixels"""
    new_labels: np.ndarray
    """(pieces, 2) new label in the left and in the right half of the image, 0 if removed"""
    labelled_left: np.ndarray
    """(pieces,) number of pixels labelled left kidney"""

    def apply(self, mask: np.ndarray, index: int) -> np.ndarray:
        """Return a cleaned copy of a slice.

        Args:
            mask: (H, W) label map, uint8, as passed to `ComponentScan.add`.
            index: index of the slice, from 0.

        Raises:
            IndexError: no such slice was scanned.
            ValueError: the slice differs from the scanned one.
        """
        if not 0 <= index < len(self.first) - 1:
            raise IndexError(f"slice {index} of a scan of {len(self.first) - 1}")
        here = slice(self.first[index], self.first[index + 1])
        organ, pixels, new_labels = self.organ[here], self.pixels[here], self.new_labels[here]
        cleaned = mask.copy()
        for label in np.unique(organ[self._changes(here)]):
            of_organ = organ == label
            pieces = _find_pieces(mask, label)  # numbered as in the first pass
            found = (pieces.count, cv2.countNonZero(pieces.organ)) if pieces else (0, 0)
            if found != (np.count_nonzero(of_organ), pixels[of_organ].sum()):
                raise ValueError(f"slice {index} is not as it was scanned")
            height, width = pieces.labels.shape
            part = cleaned[pieces.top :, pieces.left :][:height, :width]
            middle = max(0, mask.shape[1] // 2 - pieces.left)
            for half, columns in enumerate((np.s_[:, :middle], np.s_[:, middle:])):
                replaced = np.append(np.uint8(0), new_labels[of_organ, half])
                labels = pieces.labels[columns]
                part[columns] = np.where(labels > 0, replaced.take(labels), part[columns])
        return cleaned

    def _changes(self, here: slice) -> np.ndarray:
        """Return (pieces,) bool: which pieces of a slice are erased or relabelled."""
        organ, new_labels = self.organ[here], self.new_labels[here]
        left, all_left = self.labelled_left[here], self.labelled_left[here] == self.pixels[here]
        was = np.where((organ == _KIDNEYS) & (left == 0), _RIGHT_KIDNEY, organ)
        is_mixed = (organ == _KIDNEYS) & (left > 0) & ~all_left
        return is_mixed | (new_labels != was[:, None]).any(axis=1)


def _find_pieces(mask: np.ndarray, label: int) -> _Pieces | None:
    found = crop_organ(cv2.LUT(mask, _BOTH_KIDNEYS) if label == _KIDNEYS else mask, label)
    if found is None:
        return None
    left, top, organ = found
    count, labels = cv2.connectedComponents(organ, connectivity=8)
    return _Pieces(left, top, count - 1, organ, labels)  # without the background


def _overlaps(a: _Pieces, b: _Pieces) -> np.ndarray:
    """Return (pairs, 2) numbers, from 0, of pieces of `a` and of `b` that share a pixel."""
    left, top = max(a.left, b.left), max(a.top, b.top)
    right = max(left, min(piece.left + piece.labels.shape[1] for piece in (a, b)))
    bottom = max(top, min(piece.top + piece.labels.shape[0] for piece in (a, b)))
    in_a, in_b = (
        piece.labels[top - piece.top : bottom - piece.top, left - piece.left : right - piece.left]
        for piece in (a, b)
    )
    shared = (in_a > 0) & (in_b > 0)
    base = b.count + 1
    pairs = in_a[shared].astype(np.int64) * base + in_b[shared]  # int32 would overflow at 512 px
    changes = np.flatnonzero(np.diff(pairs, prepend=-1))  # equal pairs are adjacent: sort one of each run
    return np.column_stack(np.divmod(np.unique(pairs[changes]), base)) - 1


def _count_sides(mask: np.ndarray, pieces: _Pieces) -> np.ndarray:
    """Count (pieces, 2) pixels labelled left kidney, and those in the image's right half (patient's left)."""
    height, width = pieces.labels.shape
    part = mask[pieces.top :, pieces.left :][:height, :width]
    middle = max(0, mask.shape[1] // 2 - pieces.left)
    counted = (pieces.labels[part == _LEFT_KIDNEY], pieces.labels[:, middle:].ravel())
    return np.column_stack([np.bincount(labels, minlength=pieces.count + 1)[1:] for labels in counted])


def _sides_of_pieces(organ: np.ndarray, sides: array) -> tuple[np.ndarray, np.ndarray]:
    """Return the two columns of `_count_sides` for all pieces, (pieces,) each; 0 for other organs."""
    spread = np.zeros((len(organ), 2), dtype=np.int64)
    spread[organ == _KIDNEYS] = np.array(sides, dtype=np.int64).reshape(-1, 2)
    return spread[:, 0], spread[:, 1]


def _label_kidneys(pixels: np.ndarray, labelled_left: np.ndarray, on_left: np.ndarray) -> np.ndarray:
    """Return (components, 2) labels of kidney components in the left and right half of the image."""
    labels = np.tile(np.uint8([_RIGHT_KIDNEY, _LEFT_KIDNEY]), (len(pixels), 1))
    by_label, by_side = labelled_left / pixels, on_left / pixels
    # the last matching rule wins
    for share, least in ((by_side, ONE_LABEL), (by_label, ONE_LABEL), (by_side, ONE_SIDED)):
        labels[share >= least] = _LEFT_KIDNEY
        labels[share <= 1 - least] = _RIGHT_KIDNEY
    return labels


def _limit_ml(new_labels: np.ndarray, ml: np.ndarray) -> np.ndarray:
    """Return the minimum volume for each component, from labels and volumes (components, 2) of all."""
    largest_ml, share = np.zeros((2, 1 + max(ORGANS.values())))
    np.maximum.at(largest_ml, new_labels, ml)
    for name, label in ORGANS.items():
        share[label] = MIN_SHARE[name]
    return np.maximum(MIN_COMPONENT_ML, (share * largest_ml)[new_labels])
