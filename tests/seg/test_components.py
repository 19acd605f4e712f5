"""Cleaning masks slice by slice gives the result of cleaning the whole volume."""

import tracemalloc

import cv2
import numpy as np
import pytest

from src.core.targets import ORGANS
from src.seg.components import ComponentScan
from tests.helpers.seg_volumes import (
    BOWEL,
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SPLEEN,
    SWAPPED,
    VOXEL_ML,
    clean,
    clean_whole,
    draw_blobs,
    draw_box,
    scan_of,
)


@pytest.fixture
def volume():
    return np.zeros((12, 40, 40), dtype=np.uint8)


def test_clean_up_equals_components_of_the_whole_volume():
    partly = 0
    for seed in range(60):
        volume = draw_blobs(seed)
        voxel_ml = np.random.default_rng(seed).uniform(0.005, 0.2, len(volume))
        cleaned = clean(volume, voxel_ml)
        np.testing.assert_array_equal(cleaned, clean_whole(volume, voxel_ml), err_msg=f"seed {seed}")
        np.testing.assert_array_equal(clean(cleaned, voxel_ml), cleaned, err_msg=f"seed {seed}, again")
        partly += any(0 < np.sum(cleaned == label) < np.sum(volume == label) for label in ORGANS.values())
    assert partly > 40  # organs that lose something and keep something


@pytest.mark.parametrize("label", [LIVER, SPLEEN, LEFT_KIDNEY, RIGHT_KIDNEY])
def test_clean_up_compares_with_the_largest_component_of_the_same_organ(volume, label):
    draw_box(volume, BOWEL, (0, 12), (0, 20), (0, 40))
    first = 20 if label == LEFT_KIDNEY else 0
    assert draw_box(volume, label, (0, 8), (22, 32), (first, first + 10)) == 800
    assert draw_box(volume, label, (9, 11), (22, 32), (first, first + 10)) == 200
    expected = volume.copy()
    assert draw_box(volume, label, (9, 11), (22, 33), (first + 11, first + 20)) == 198
    np.testing.assert_array_equal(clean(volume), expected)


def test_clean_up_keeps_every_bowel_component_of_1_ml(volume):
    draw_box(volume, BOWEL, (0, 12), (0, 20), (0, 40))
    assert draw_box(volume, BOWEL, (3, 5), (30, 35), (10, 20)) == 100
    expected = volume.copy()
    assert draw_box(volume, BOWEL, (8, 9), (30, 39), (10, 21)) == 99
    np.testing.assert_array_equal(clean(volume), expected)


def test_clean_up_connects_corners_within_a_slice_only(volume):
    draw_box(volume, SPLEEN, (0, 6), (0, 10), (0, 10))
    draw_box(volume, SPLEEN, (5, 6), (10, 14), (10, 14))
    expected = volume.copy()
    draw_box(volume, SPLEEN, (6, 7), (14, 18), (14, 18))  # touches the piece above by a corner only
    np.testing.assert_array_equal(clean(volume), expected)
    volume[6, 13, 13] = SPLEEN  # which now reaches under it
    np.testing.assert_array_equal(clean(volume), volume)


@pytest.mark.parametrize("gap", [0, 1, 3, 20])
@pytest.mark.parametrize("axis", [1, 2])
def test_clean_up_separates_components_without_overlap(volume, axis, gap):
    turned = np.moveaxis(volume, 1, axis)  # the same memory, its rows and columns swapped or not
    draw_box(turned, LIVER, (4, 5), (0, 15), (0, 40))
    expected = volume.copy()
    draw_box(turned, LIVER, (5, 6), (15 + gap, 18 + gap), (0, 40))
    np.testing.assert_array_equal(clean(volume), expected)
    np.testing.assert_array_equal(clean(volume[::-1]), expected[::-1])


@pytest.mark.parametrize("slices", [0, 1, 5])
def test_clean_up_of_empty_masks(slices):
    volume = np.zeros((slices, 16, 16), dtype=np.uint8)
    np.testing.assert_array_equal(clean(volume), volume)


def test_clean_up_keeps_a_component_of_exactly_the_limit():
    """The sum of ten times 0.1 in floats is below 1."""
    volume = np.ones((10, 10, 10), dtype=np.uint8)
    np.testing.assert_array_equal(clean(volume, 0.001), volume)
    assert not clean(volume[:, :, 1:], 0.001).any()


def test_clean_up_corrects_swapped_kidneys(volume):
    draw_box(volume, LEFT_KIDNEY, (0, 12), (10, 20), (5, 15))
    draw_box(volume, RIGHT_KIDNEY, (0, 12), (10, 20), (25, 35))
    draw_box(volume, BOWEL, (0, 12), (25, 35), (0, 40))
    np.testing.assert_array_equal(clean(volume), SWAPPED[volume])


@pytest.mark.parametrize(("columns", "own"), [((5, 15), RIGHT_KIDNEY), ((20, 30), LEFT_KIDNEY)])
@pytest.mark.parametrize("predicted", [LEFT_KIDNEY, RIGHT_KIDNEY])
def test_clean_up_labels_a_single_kidney_by_its_side(volume, columns, own, predicted):
    draw_box(volume, predicted, (2, 8), (10, 20), columns)
    np.testing.assert_array_equal(clean(volume), np.where(volume, own, 0))


@pytest.mark.parametrize("label", [LEFT_KIDNEY, RIGHT_KIDNEY])
def test_clean_up_keeps_the_label_of_a_kidney_across_the_middle(volume, label):
    """The trunk is not in the middle of the image: an arm lies beside it."""
    draw_box(volume, label, (0, 12), (10, 20), (16, 26))
    draw_box(volume, SWAPPED[label], (3, 5), (10, 14), (16, 26))  # some pixels have the other label
    np.testing.assert_array_equal(clean(volume), np.where(volume, label, 0))


def test_clean_up_splits_two_kidneys_that_touch(volume):
    draw_box(volume, RIGHT_KIDNEY, (0, 12), (10, 20), (8, 20))
    draw_box(volume, LEFT_KIDNEY, (0, 12), (10, 20), (20, 32))
    expected = volume.copy()
    draw_box(volume, LEFT_KIDNEY, (4, 6), (10, 20), (18, 20))  # labels are mixed at the middle
    np.testing.assert_array_equal(clean(volume), expected)


def test_clean_up_does_not_depend_on_opencv_threads():
    """The second pass numbers the pieces again, and OpenCV splits a slice among its threads."""
    threads = cv2.getNumThreads()
    volume = draw_blobs(3)
    clean_up = scan_of(volume).clean_up(0.05)
    try:
        results = []
        for count in (1, 2, 7):
            cv2.setNumThreads(count)
            results.append([clean_up.apply(mask, index) for index, mask in enumerate(volume)])
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(results[0], clean_whole(volume, 0.05))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])


def test_component_scan_memory_grows_by_a_few_numbers_per_piece():
    masks = [draw_blobs(seed)[0] for seed in range(76, 80)]
    masks = [cv2.resize(mask, (128, 128), interpolation=cv2.INTER_NEAREST) for mask in masks]
    scan = ComponentScan()
    held = {}
    tracemalloc.start()
    try:
        for index in range(400):
            scan.add(masks[index % len(masks)])
            held[index + 1] = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        clean_up = scan.clean_up(VOXEL_ML)
        for index in range(400):
            clean_up.apply(masks[index % len(masks)], index)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    pieces = len(clean_up.pixels)
    assert pieces > 400 * 20
    # a label, a count, and some links of 16 bytes each; arrays grow by an eighth ahead of need
    assert held[400] - held[100] < 40 * pieces
    assert (held[400] - held[100]) / 300 < masks[0].nbytes / 4
    assert peak < 100 * pieces


def test_clean_up_refuses_a_slice_that_was_not_scanned(volume):
    draw_box(volume, LIVER, (0, 2), (5, 10), (5, 10))
    scan = scan_of(volume[:3])
    with pytest.raises(ValueError, match="shape"):
        scan.add(volume[0, :20])
    clean_up = scan.clean_up(VOXEL_ML)
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"slice {index} of a scan of 3"):
            clean_up.apply(volume[0], index)
    larger, parted = volume[0].copy(), volume[0].copy()
    larger[10, 5] = LIVER
    parted[9, 9], parted[20, 20] = 0, LIVER
    for other in (volume[2], larger, parted):
        with pytest.raises(ValueError, match="slice 1 is not as it was scanned"):
            clean_up.apply(other, 1)


@pytest.mark.parametrize("voxel_ml", [0, float("nan"), np.ones(4), np.array([1, -1, 1])])
def test_component_scan_refuses_impossible_voxel_volumes(volume, voxel_ml):
    scan = scan_of(volume[:3])
    with pytest.raises(ValueError):
        scan.clean_up(voxel_ml)
