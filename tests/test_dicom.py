"""Pixels come out in Hounsfield units whatever their encoding; damaged files are refused, not crashed on."""

import numpy as np
import pytest
from dicom_files import write_slice

from src.data.dicom import FAST_READERS, SAFE_READERS, DicomError, read_header, read_hu

HU = np.random.default_rng(0).integers(-1000, 1000, (24, 20))
ENCODINGS = {
    "16-bit signed": {},
    "12-bit signed under dirty bits": {"bits_stored": 12, "dirty_bits": 0x5000},
    "13-bit unsigned under dirty bits": {
        "bits_stored": 13,
        "signed": False,
        "intercept": -1024,
        "dirty_bits": 0xE000,
    },
    "intercept -8192": {"signed": False, "intercept": -8192},
    "intercept -32768": {"signed": False, "intercept": -32768},
    "MONOCHROME1 unsigned": {
        "bits_stored": 12,
        "signed": False,
        "intercept": -1024,
        "photometric": "MONOCHROME1",
    },
    "MONOCHROME1 signed": {"bits_stored": 12, "photometric": "MONOCHROME1"},
    "slope 0.5": {"slope": 0.5, "intercept": -1024, "signed": False},
    "RLE": {"rle": True},
    "RLE, 12-bit signed under dirty bits": {"rle": True, "bits_stored": 12, "dirty_bits": 0xA000},
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("readers", [FAST_READERS[:1], SAFE_READERS], ids=["dicomsdl", "pydicom"])
def test_hu_are_restored_from_every_encoding(tmp_path, name, readers):
    path = write_slice(tmp_path / "1.dcm", HU, **ENCODINGS[name])
    hu = read_hu(read_header(path, readers), readers)
    np.testing.assert_array_equal(hu, HU)
    assert hu.dtype == (np.float32 if name == "slope 0.5" else np.int16)


def test_both_readers_see_the_same_header(tmp_path):
    path = write_slice(tmp_path / "7.dcm", HU, position_mm=(-1.5, 2, 3.25), instance_number=7, padding=-2000)
    assert read_header(path, FAST_READERS[:1]) == read_header(path, SAFE_READERS)


def test_padding_and_values_below_air_are_air(tmp_path):
    hu = np.array([[-2000, 40], [-3024, 1500]])
    by_value = write_slice(tmp_path / "1.dcm", hu, padding=1500)
    np.testing.assert_array_equal(read_hu(read_header(by_value)), [[-1024, 40], [-1024, -1024]])


def test_a_rescale_with_fractions_keeps_them(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.array([[0.25, 100.75]]), slope=0.25)
    hu = read_hu(read_header(path))
    assert hu.dtype == np.float32
    np.testing.assert_allclose(hu, [[0.25, 100.75]])


def test_values_beyond_int16_are_clipped_not_wrapped(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.array([[40000, 0]]), signed=False)
    np.testing.assert_array_equal(read_hu(read_header(path)), [[32767, 0]])


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_a_file_cut_short_is_refused(tmp_path, rle, kept):
    path = write_slice(tmp_path / "1.dcm", np.tile(HU, (8, 8)), rle=rle)
    header = read_header(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DicomError):
        read_hu(header)


@pytest.mark.parametrize("content", [b"", b"not an image", bytes(500)])
def test_a_file_that_is_not_dicom_is_refused(tmp_path, content):
    path = tmp_path / "1.dcm"
    path.write_bytes(content)
    with pytest.raises(DicomError, match="not a readable DICOM file"):
        read_header(path)
