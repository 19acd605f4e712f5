"""Stored pixels become Hounsfield units; padding and all below air are air."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from src.ct.dicom_header import DicomError
from src.ct.pixels import read_hu
from tests.helpers.dicom_files import read_header, write_slice

HU = np.random.default_rng(0).integers(-1000, 1000, (24, 20))


def read_written(path, hu, **options):
    return read_hu(read_header(write_slice(path, hu, **options)))


def test_read_hu_turns_a_range_of_padding_into_air(tmp_path):
    hu = np.array([[-1000, 40, 41], [42, 43, 44]])
    path = write_slice(tmp_path / "1.dcm", hu, padding=43)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingRangeLimit", "SS", 41)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_hu(read_header(path)), [[-1000, 40, -1024], [-1024, -1024, 44]])


@pytest.mark.parametrize("padding", [-2000, -2048, -3024, -32768])
@pytest.mark.parametrize("rle", [False, True])
def test_read_hu_of_padding_that_the_stored_bits_cannot_hold(tmp_path, padding, rle):
    """12 bits of it may look like bone, and bone of that value must stay."""
    low_bits = padding & 0xFFF
    hu = np.array([[100, low_bits - (low_bits >> 11 << 12)], [0, -1000]])
    path = write_slice(tmp_path / "1.dcm", hu, bits_stored=12, padding=padding)
    dataset = pydicom.dcmread(path)
    words = np.frombuffer(dataset.PixelData, np.int16).copy()
    words[0] = padding
    dataset.PixelData = words.tobytes()
    if rle:
        dataset.compress(RLELossless)
    dataset.save_as(path)
    expected = np.maximum(hu, -1024)
    expected[0, 0] = -1024
    np.testing.assert_array_equal(read_hu(read_header(path)), expected)


def test_read_hu_refuses_zeros_that_are_not_air(tmp_path):
    with pytest.raises(DicomError, match="every pixel is zero"):
        read_written(tmp_path / "1.dcm", np.zeros((4, 4)))
    assert (
        read_written(tmp_path / "2.dcm", np.full((4, 4), -1024), signed=False, intercept=-1024) == -1024
    ).all()
    half = np.pad(HU, ((0, 0), (8, 0)))
    np.testing.assert_array_equal(read_written(tmp_path / "3.dcm", half), half)


@pytest.mark.parametrize("intercept", [-65536, -40000, -1024, -1, 1, 1024, 31744, 32700, 40000])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slope", [1, 2, -1])
def test_read_hu_clips_to_16_bits_for_every_intercept(tmp_path, intercept, signed, slope):
    stored = np.arange(-32768, 32768, 7) + (32768 if signed is False else 0)
    hu = read_written(
        tmp_path / "1.dcm", stored[None], signed=signed, RescaleIntercept=intercept, RescaleSlope=slope
    )
    np.testing.assert_array_equal(hu[0], np.clip(stored * slope + intercept, -1024, 32767))
