"""Specks of organ masks, found in 3D and erased without the volume in memory.

A series may have thousands of slices. So they pass twice, one by one: the first pass keeps numbers about the
pieces (2D components) of each slice and which of them touch, the second erases pieces of what is too small.

    scan = ComponentScan()
    for mask in masks:
        scan.add(mask)
    specks = scan.specks(voxel_ml)
    cleaned = (specks.erase(mask, index) for index, mask in enumerate(masks))
"""

from array import array
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from src.data.organ_tables import crop_organ
from src.data.stack import ORGANS

# A ball of 12 mm, about a hundredth of a kidney and less of the other organs. Left where it is, it would
# stretch the box of an organ, and the slices that show it, to a place where the organ is not.
MIN_COMPONENT_ML = 1.0
"""A component below it never stays."""

# An injured organ may be torn in pieces, so its largest component alone is not enough; what a network takes
# for an organ elsewhere is small beside it. Bowel comes in pieces in every patient: its loops touch or not,
# and a scan may end in the middle of them.
MIN_SHARE = MappingProxyType(
    {"liver": 0.25, "spleen": 0.25, "left kidney": 0.25, "right kidney": 0.25, "bowel": 0.0}
)
"""A component below this share of its organ's largest one goes."""

_LEFT_KIDNEY, _RIGHT_KIDNEY = ORGANS["left kidney"], ORGANS["right kidney"]
_SUM_ERROR = 1e-9  # volumes are sums of floats: a component of just the size asked for stays


def sort_kidneys(mask: np.ndarray) -> np.ndarray:
    """Name kidneys by their side: left in the right half of the image, right in its left half.

    A slice shows little that tells the two apart but their side. The middle one of an odd number of columns
    is on neither side and keeps its labels.

    Args:
        mask: (H, W) label map, centred on the body, the patient's left on the image's right.

    Returns:
        A new label map, of the same type.
    """
    half = mask.shape[1] // 2
    halves = np.s_[:, :half], np.s_[:, mask.shape[1] - half :]
    sorted_mask = mask.copy()
    for columns, own, other in zip(
        halves, (_RIGHT_KIDNEY, _LEFT_KIDNEY), (_LEFT_KIDNEY, _RIGHT_KIDNEY), strict=True
    ):
        sorted_mask[columns][mask[columns] == other] = own
    return sorted_mask


@dataclass(frozen=True)
class _Pieces:
    """2D components of an organ in a slice, numbered from 1, in the crop that begins at (top, left)."""

    left: int
    top: int
    count: int
    organ: np.ndarray  # (h, w) 1 in all of them
    labels: np.ndarray  # (h, w)

    def count_pixels(self) -> np.ndarray:
        """Of each piece, (count,)."""
        return np.bincount(self.labels[self.organ.view(bool)])[1:]


class ComponentScan:
    """The first pass over a series. It holds some bytes for every piece, and the pieces of one slice."""

    def __init__(self) -> None:
        self._first = array("q", [0])  # of each slice: where its pieces begin below; the last: where they end
        self._organ = array("B")
        self._pixels = array("q")
        self._links = array("q")  # pairs of pieces that touch
        self._before: dict[int, tuple[int, _Pieces]] = {}  # of the last slice, by label, with its first piece
        self._shape: tuple[int, ...] | None = None

    def add(self, mask: np.ndarray) -> None:
        """Take the next slice: (H, W) label map, uint8, kidneys sorted.

        Pieces touch by sides and corners within a slice, and by overlap with those of the slice before.

        Raises:
            ValueError: a slice of another shape than those before it.
        """
        if self._shape not in (None, mask.shape):
            raise ValueError(f"a slice of shape {mask.shape} among slices of shape {self._shape}")
        self._shape = mask.shape
        now = {}
        for label in ORGANS.values():
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
            now[label] = first, pieces
        self._before = now
        self._first.append(len(self._pixels))

    def specks(self, voxel_ml: float | np.ndarray) -> "Specks":
        """Decide what goes of the slices so far.

        Args:
            voxel_ml: volume of a voxel, or (slices,) where slices lie at uneven distances.

        Raises:
            ValueError: volumes for another number of slices, or not all above 0.
        """
        first, organ, pixels = (np.array(numbers) for numbers in (self._first, self._organ, self._pixels))
        voxel_ml = np.broadcast_to(np.asarray(voxel_ml, dtype=np.float64), len(first) - 1)
        if not (voxel_ml > 0).all():
            raise ValueError("the volume of a voxel must be above 0")
        links = np.array(self._links).reshape(-1, 2)
        graph = coo_matrix((np.ones(len(links), dtype=bool), tuple(links.T)), shape=(len(pixels),) * 2)
        component = connected_components(graph, directed=False)[1]  # of each piece
        component_ml = np.bincount(component, weights=pixels * np.repeat(voxel_ml, np.diff(first)))
        component_organ = np.zeros(len(component_ml), dtype=np.intp)
        component_organ[component] = organ
        goes = component_ml < _limit_ml(component_organ, component_ml) * (1 - _SUM_ERROR)
        return Specks(first, organ, pixels, goes[component])


@dataclass(frozen=True)
class Specks:
    """What goes of a series, piece by piece. `ComponentScan.specks` makes one."""

    first: np.ndarray
    """(slices + 1,) where the pieces of each slice begin in the arrays below, and where the last end."""
    organ: np.ndarray
    """(pieces,) label."""
    pixels: np.ndarray
    """(pieces,) number of pixels."""
    goes: np.ndarray
    """(pieces,) bool."""

    def erase(self, mask: np.ndarray, index: int) -> np.ndarray:
        """A copy of a slice without its specks.

        Args:
            mask: (H, W) label map, uint8, as it was scanned.
            index: of the slice, from 0.

        Raises:
            IndexError: no such slice was scanned.
            ValueError: an organ that has specks in the slice is not as it was scanned.
        """
        if not 0 <= index < len(self.first) - 1:
            raise IndexError(f"slice {index} of a scan of {len(self.first) - 1}")
        here = slice(self.first[index], self.first[index + 1])
        organ, pixels, goes = self.organ[here], self.pixels[here], self.goes[here]
        cleaned = mask.copy()
        for label in np.unique(organ[goes]):
            of_organ = organ == label
            pieces = _find_pieces(mask, label)  # numbered as in the first pass
            found = (pieces.count, cv2.countNonZero(pieces.organ)) if pieces else (0, 0)
            if found != (np.count_nonzero(of_organ), pixels[of_organ].sum()):
                raise ValueError(f"slice {index} is not as it was scanned")
            height, width = pieces.labels.shape
            is_speck = np.append(False, goes[of_organ]).take(pieces.labels)  # (h, w)
            cleaned[pieces.top :, pieces.left :][:height, :width][is_speck] = 0
        return cleaned


def _find_pieces(mask: np.ndarray, label: int) -> _Pieces | None:
    found = crop_organ(mask, label)
    if found is None:
        return None
    left, top, organ = found
    count, labels = cv2.connectedComponents(organ, connectivity=8)
    return _Pieces(left, top, count - 1, organ, labels)  # less the background


def _overlaps(a: _Pieces, b: _Pieces) -> np.ndarray:
    """(pairs, 2) pieces of `a` and `b`, each counted from 0, that share a pixel."""
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
    changes = np.flatnonzero(np.diff(pairs, prepend=-1))  # pairs come in runs of pixels: sort one of each
    return np.column_stack(np.divmod(np.unique(pairs[changes]), base)) - 1


def _limit_ml(organ: np.ndarray, ml: np.ndarray) -> np.ndarray:
    """The least volume at which each component stays, from the labels and volumes of all, (components,)."""
    largest_ml, share = np.zeros((2, 1 + max(ORGANS.values())))
    np.maximum.at(largest_ml, organ, ml)
    for name, label in ORGANS.items():
        share[label] = MIN_SHARE[name]
    return np.maximum(MIN_COMPONENT_ML, (share * largest_ml)[organ])
