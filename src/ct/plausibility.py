"""Whether a series is a CT in Hounsfield units: what its values say, and its slices among each other.

Headers may be wrong about sign, bits, rescale and order, and about whose slices they describe; anatomy is
not. Air is near -1000 HU, fat near -100, muscle, blood and organs lie between 0 and 150, and a slice is more
like its neighbours than like any other. Each limit below leaves room around real series: chests and abdomens
with and without contrast, low dose, sharp kernels, and fields of view inside the body.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from src.ct.sampled_slices import DENSE_HU, SampledSlices
from src.ct.series import CtSeries, Remark, SeriesError
from src.ct.windows import AIR_HU

NEIGHBOURS = 24
"""Number of slices to examine together with the next one, in series of which not every slice is examined."""

_MAX_BLANK = 0.1
_MAX_BODY_MM = 1000.0
_MAX_SCAN_MM = 2500.0

_VALUE_SLICES = 16
_MIN_SPAN_HU = 100
_MIN_FAT_HU = -30
_RING = 0.9  # outside of this share of the inscribed circle's radius there is air, if the body fits the image
_MIDDLE = 0.4
_MAX_AIR_HU = -930  # real: -1012 to -980
_MIN_BONE = 0.001  # share of what is denser than lung; real: 0.004 in the middle of a body
_WITH_BONE_MM = 200.0  # side of an image that shows part of a bone, wherever it lies in the trunk
_CUT_HU = (100, 1000)  # scanners store up to 3071 or more; below 100 a drawing may end
_MAX_STEP_HU = 10
_FEW_LEVELS = 6  # fewer are a drawing, not noise on a coarse scale

_THUMB = 24  # pixels per side
_THUMB_HU = (-200, 250)
_LIKE = 0.6  # relative to the nearest consecutive slice; real: no slice below 0.75
_CHANGE_HU = 5.0  # mean difference of slices that are not alike
_MAX_MISPLACED = 0.05
_JUMP = 3.0  # relative to the changes around it over the same distance; real: 1.6
_JUMP_HU = 50.0  # mean over the body; less may be a breath between two slabs
_METAL_HU, _METAL_PIXELS = 2200, 6  # its streaks begin and end within one slice
_AROUND = 4  # slices on either side
_END = 0.05  # of the slices at either end, at least two, may be partly black


Decode = Callable[[CtSeries], Iterable[tuple[int, np.ndarray]]]
"""Decodes some slices of a series: index and HU (rows, cols)."""


@dataclass(frozen=True)
class Contradiction:
    """A property that slices of a CT do not have."""

    text: str
    is_fatal: bool = False
    """Whether such a series is no CT, rather than a CT in doubt."""


def check_series(series: CtSeries, decode: Decode) -> tuple[CtSeries, SampledSlices, tuple[Remark, ...]]:
    """Check that a series is a CT; read it in another way if only that makes a CT of it.

    Returns:
        The series, or another reading of it, the slices that `decode` returned for it, and all its remarks.

    Raises:
        SeriesError: the series is no CT, or no slice can be decoded.
    """
    samples = _sample(series, decode)
    contradictions, disorder = find_contradictions(samples), find_disorder(samples)
    remarks = list(series.remarks)
    if contradictions or disorder:
        readings = list(_plausible_readings(series, decode, in_order=not contradictions))
        if len(readings) == 1:
            remark, series, samples = readings[0]
            remarks.append(remark)
            contradictions, disorder = [], find_disorder(samples)
    reasons = [item.text for item in contradictions]
    doubts = [remark.text for remark in remarks if remark.doubtful]
    if any(item.is_fatal for item in contradictions) or (contradictions and doubts):  # values and header
        raise SeriesError(f"not a CT in HU: {'; '.join(reasons + doubts)}")
    remarks += [Remark(item.text, doubtful=True) for item in [*contradictions, *disorder]]
    return series, samples, tuple(remarks)


def _plausible_readings(
    series: CtSeries, decode: Decode, *, in_order: bool
) -> Iterator[tuple[Remark, CtSeries, SampledSlices]]:
    """Yield other readings that make a CT, each with other values.

    Args:
        in_order: only those whose neighbouring slices belong together.
    """
    known: list[np.ndarray] = []
    for remark, other in series.other_readings():
        try:
            samples = _sample(other, decode)
        except SeriesError:
            continue
        wrong = find_contradictions(samples) or (in_order and find_disorder(samples))
        if wrong or any(np.array_equal(samples.hu, hu) for hu in known):
            continue
        known.append(samples.hu)
        yield remark, other, samples


def _sample(series: CtSeries, decode: Decode) -> SampledSlices:
    return SampledSlices(decode(series), series.pixel_mm, series.z_mm, series.source_window)


def find_contradictions(samples: SampledSlices) -> list[Contradiction]:
    """Return what the values of the slices contradict, most important first; nothing for a CT."""
    if not samples.shows_body.any():
        return [Contradiction("no slice shows a body", is_fatal=True)]
    return [*_values(samples), *_extent(samples)]


def _values(samples: SampledSlices) -> Iterator[Contradiction]:
    shown = np.flatnonzero(samples.shows_body)
    some = shown[np.linspace(0, len(shown) - 1, min(len(shown), _VALUE_SLICES)).astype(int)]
    hu = samples.hu[some]
    step_hu = _step_hu(hu)
    if step_hu > _MAX_STEP_HU:
        yield Contradiction(f"grey levels are {step_hu:.0f} HU apart")
    if not samples.is_full_range:
        return
    is_padding = hu == AIR_HU
    measured = hu[~is_padding]
    low_hu, high_hu = np.quantile(measured[::8], (0.005, 0.995))
    if high_hu - low_hu < _MIN_SPAN_HU:
        yield Contradiction(f"all values lie within {high_hu - low_hu:.0f} HU", is_fatal=True)
        return
    if low_hu > _MIN_FAT_HU:
        yield Contradiction(f"no value below {low_hu:.0f}, neither air nor fat", is_fatal=True)
        return
    smooth = np.stack([cv2.blur(image, (3, 3)) for image in hu])  # less noise
    air, has_air = _check_air(hu, smooth, is_padding)
    tissue = _check_tissue(smooth[~is_padding], has_air, min(samples.image_mm) > _WITH_BONE_MM)
    if air and tissue:
        yield Contradiction(f"{air}, and {tissue}", is_fatal=True)
    elif air or tissue:
        yield Contradiction(air or tissue)
    highest = int(measured.max())
    if _CUT_HU[0] <= highest < _CUT_HU[1]:
        share = np.count_nonzero(measured == highest) / max(1, np.count_nonzero(measured > DENSE_HU))
        if share > 0.03:
            yield Contradiction(f"values are cut off at {highest} HU")


def _step_hu(hu: np.ndarray) -> float:
    """Return the smallest distance of two values in soft tissue, 0 if there are few values."""
    inside = hu[(hu >= -150) & (hu <= 250)].astype(np.int64) + 150
    levels = np.flatnonzero(np.bincount(inside, minlength=1))
    return float(np.diff(levels).min()) if len(levels) >= _FEW_LEVELS else 0.0


def _commonest(values: np.ndarray, low_hu: int, high_hu: int) -> float:
    counts = np.bincount((values.astype(np.int64) - low_hu) >> 3, minlength=(high_hu - low_hu >> 3) + 1)
    return low_hu + 8.0 * int(np.convolve(counts, np.ones(3), "same").argmax()) + 4


def _check_air(hu: np.ndarray, smooth: np.ndarray, is_padding: np.ndarray) -> tuple[str, bool]:
    """Return what contradicts air around the body, and whether there is air near -1000 HU."""
    rows, cols = (np.linspace(-1, 1, length) for length in hu.shape[1:])
    radius = np.hypot(rows[:, None], cols)  # 1 at the side of the image
    ring = radius > _RING
    is_measured = ~is_padding[:, ring]
    around = smooth[:, ring][is_measured]
    light = around[(around < DENSE_HU) & (around > AIR_HU)]
    has_air = False
    if light.size > 0.05 * is_measured.size:
        level_hu, share = _commonest(light, AIR_HU, DENSE_HU), light.size / around.size
        has_air = share > 0.5 and level_hu <= _MAX_AIR_HU
        is_narrow = np.mean(np.abs(light - level_hu) < 40) > 0.45
        is_wide = light.size > 0.25 * is_measured.size  # not the skin's edge beside a mask
        if is_wide and share > 0.7 and is_narrow and level_hu > _MAX_AIR_HU:
            return f"air around the body is at {level_hu:.0f} HU, not -1000", False
    if is_padding[:, radius < _MIDDLE].mean() > 0.3:
        return f"the middle of the body is below {AIR_HU} HU", has_air
    if not has_air and around.size > 0.1 * is_measured.size:
        exact = hu[:, ring][is_measured].astype(np.int64)
        counts = np.bincount(exact - AIR_HU)
        value = int(counts.argmax()) + AIR_HU
        is_fill = value == 0 or value == hu[~is_padding].min() or value == hu.max()
        if counts.max() > 0.5 * exact.size and value > _MAX_AIR_HU and is_fill:
            return f"{value} HU everywhere around the body, not air at -1000", False
    return "", has_air


def _check_tissue(values: np.ndarray, has_air: bool, shows_bone: bool) -> str:
    """Return what contradicts tissue, by the shares of what is denser than lung in bands of HU.

    Args:
        values: HU of pixels that are no padding.
        has_air: air is near -1000 HU, so that only a wrong slope can move tissue.
        shows_bone: the image is large enough to show part of a bone.
    """
    dense = values[values >= DENSE_HU]
    edges = (-300, -160, -150, -50, -30, 175, 400, 32767)
    below_fat, _, fat, _, soft, dense_soft, bone = np.histogram(dense, edges)[0] / max(1, dense.size)
    is_low = below_fat > (0.25 if has_air else 0.14) and below_fat > 0.5 * fat
    is_high = dense_soft > (0.4 if has_air else 0.3) and dense_soft > 3 * fat
    if shows_bone and dense_soft + bone < _MIN_BONE:
        return f"no tissue is as dense as bone (above {edges[5]} HU)"
    is_soft = soft > 0.25 or (soft > 0.12 and soft + fat > 0.6)  # an obese patient has little else than fat
    if not is_soft or bone > 0.25 or is_low or is_high:
        level = _commonest(np.minimum(dense, 3000), DENSE_HU, 3000)
        return f"soft tissue is not at 0 to 150 HU (most of the body is near {level:.0f})"
    return ""


def _extent(samples: SampledSlices) -> Iterator[Contradiction]:
    length_mm = np.ptp(samples.z_mm)
    if length_mm > _MAX_SCAN_MM:
        yield Contradiction(f"slices cover {length_mm / 1000:.1f} m")
    if max(samples.image_mm) > _MAX_BODY_MM:
        dense = (samples.hu > DENSE_HU)[samples.shows_body].mean(axis=0) > 0.5
        for axis, image_mm in enumerate(samples.image_mm):
            inside = np.flatnonzero(dense.any(axis=1 - axis))
            wide_mm = np.ptp(inside) / dense.shape[axis] * image_mm if inside.size else 0
            if wide_mm > _MAX_BODY_MM:
                yield Contradiction(f"the body is {wide_mm / 1000:.1f} m wide")
                return


def find_disorder(samples: SampledSlices) -> list[Contradiction]:
    """Return what neighbouring slices contradict: blank, misplaced and foreign slices."""
    return [*_blanks(samples), *_misplaced(samples)]


def _blanks(samples: SampledSlices) -> Iterator[Contradiction]:
    first, last = samples.body_range
    within = samples.shows_body[(samples.indices >= first) & (samples.indices <= last)]
    if within.size and 1 - within.mean() > _MAX_BLANK:
        yield Contradiction(f"{100 * (1 - within.mean()):.0f} % of the slices within the body are blank")


def _misplaced(samples: SampledSlices) -> Iterator[Contradiction]:
    shown = np.flatnonzero(samples.shows_body)
    if len(shown) < 4:
        return
    thumbs = np.stack([_thumb(samples.hu[row]) for row in shown])
    differences = np.stack([np.abs(thumbs - thumb).mean(axis=1) for thumb in thumbs])  # (N, N) HU
    to_next = np.diagonal(differences, 1)
    consecutive = np.diff(samples.indices[shown]) == 1
    nearest_next = np.full(len(shown), np.inf)
    for rows in (slice(None, -1), slice(1, None)):
        nearest_next[rows] = np.minimum(nearest_next[rows], np.where(consecutive, to_next, np.inf))
    others = np.abs(np.subtract.outer(np.arange(len(shown)), np.arange(len(shown)))) > 1
    nearest = np.where(others, differences, np.inf).min(axis=1)
    known = np.isfinite(nearest_next)
    end = max(2, round(_END * len(shown)))
    is_misplaced = known & (nearest_next > _CHANGE_HU) & (nearest < _LIKE * nearest_next)
    is_misplaced[:end] = is_misplaced[-end:] = False
    if is_misplaced.sum() > _MAX_MISPLACED * known.sum():
        yield Contradiction(
            "neighbouring slices do not belong together: mixed scans, or wrong positions "
            f"({100 * is_misplaced.sum() / known.sum():.0f} % resemble another slice more)"
        )
        return
    steps_mm = np.maximum(-np.diff(samples.z_mm[shown]), 1e-3)
    usual = steps_mm * _running_median(to_next / steps_mm)
    jump_hu = _JUMP_HU * np.mean(samples.hu[shown] > DENSE_HU)
    for row in np.flatnonzero((to_next > _JUMP * usual) & (to_next > jump_hu)):
        is_inside = end <= row < len(shown) - end - 1
        if is_inside and _change_hu(samples.hu[shown[row : row + 2]]) > jump_hu:
            yield Contradiction(
                f"the slices at {samples.z_mm[shown[row]]:.0f} and {samples.z_mm[shown[row + 1]]:.0f} mm do "
                "not belong together: two scans"
            )
            return


def _running_median(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, _AROUND, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1), axis=1)


def _thumb(hu: np.ndarray) -> np.ndarray:
    """Return soft tissue of a slice in small, as one row of pixels."""
    small = cv2.resize(np.clip(hu, *_THUMB_HU), (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)
    return small.ravel().astype(np.float32)


def _change_hu(pair: Sequence[np.ndarray]) -> float:
    """Return the mean difference of two slices without padding; 0 if only one of them shows metal."""
    metal = [np.count_nonzero(image > _METAL_HU) >= _METAL_PIXELS for image in pair]
    both = (pair[0] > AIR_HU) & (pair[1] > AIR_HU)
    if metal[0] != metal[1] or not both.any():
        return 0.0
    before, after = (np.clip(image[both], *_THUMB_HU).astype(np.float32) for image in pair)
    return float(np.abs(before - after).mean())
