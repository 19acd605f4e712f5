"""Pixels come out in Hounsfield units whatever their encoding; damaged files are refused, not crashed on."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from src.ct import dicom_readers, pydicom_reader
from src.ct.dicom_header import DicomError
from src.ct.dicom_readers import read_headers
from src.ct.pixels import read_hu, stored_to_hu
from src.ct.storage import LocalFile
from tests.helpers.dicom_files import write_slice


def read_header(file):
    (header,) = read_headers(file)
    return header


READERS = {
    "dicomsdl": (dicom_readers.dicomsdl_header, dicom_readers.dicomsdl_stored),
    "pydicom": (pydicom_reader.read_header, pydicom_reader.read_stored),
}
EACH_READER = pytest.mark.parametrize("reader", READERS)


def header_with(reader, path):
    return READERS[reader][0](LocalFile(path), path.read_bytes()[: dicom_readers.HEADER_BYTES])


def hu_with(reader, path):
    header = header_with(reader, path)
    return stored_to_hu(READERS[reader][1](header), header)


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
@EACH_READER
def test_stored_to_hu_restores_every_encoding(tmp_path, name, reader):
    path = write_slice(tmp_path / "1.dcm", HU, **ENCODINGS[name])
    hu = hu_with(reader, path)
    np.testing.assert_array_equal(hu, HU)
    assert hu.dtype == (np.float32 if name == "slope 0.5" else np.int16)


def test_both_readers_give_the_same_header(tmp_path):
    path = write_slice(tmp_path / "7.dcm", HU, position_mm=(-1.5, 2, 3.25), instance_number=7, padding=-2000)
    assert header_with("dicomsdl", path) == header_with("pydicom", path)


def test_read_hu_turns_padding_and_values_below_air_into_air(tmp_path):
    hu = np.array([[-2000, 40], [-3024, 1500]])
    by_value = write_slice(tmp_path / "1.dcm", hu, padding=1500)
    np.testing.assert_array_equal(read_hu(read_header(LocalFile(by_value))), [[-1024, 40], [-1024, -1024]])


def read_written(path, hu, **options):
    return read_hu(read_header(LocalFile(write_slice(path, hu, **options))))


def test_read_hu_turns_a_range_of_padding_into_air(tmp_path):
    hu = np.array([[-1000, 40, 41], [42, 43, 44]])
    path = write_slice(tmp_path / "1.dcm", hu, padding=43)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingRangeLimit", "SS", 41)
    dataset.save_as(path)
    expected = [[-1000, 40, -1024], [-1024, -1024, 44]]
    np.testing.assert_array_equal(read_hu(read_header(LocalFile(path))), expected)


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
    np.testing.assert_array_equal(read_hu(read_header(LocalFile(path))), expected)


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


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "modality MR, not CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"NumberOfFrames": 3}, "holds 3 frames"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient is missing or malformed"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "makes no sense"),
        ({"PixelSpacing": [0, 0]}, "makes no sense"),
        ({"Rows": 65535, "Columns": 65535}, "makes no sense"),
        ({"RescaleType": "MGML"}, "pixels are MGML, not HU"),
    ],
)
def test_parse_header_refuses_other_images(tmp_path, tags, reason):
    path = write_slice(tmp_path / "1.dcm", HU, **tags)
    with pytest.raises(DicomError, match=reason):
        read_header(LocalFile(path))


def test_parse_header_refuses_signed_8_bits(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.array([[-100, 100]]), bits_stored=8)
    with pytest.raises(DicomError, match="neither HU nor grey levels"):
        read_header(LocalFile(path))


@EACH_READER
def test_parse_header_refuses_unsigned_pixels_without_a_rescale(tmp_path, reader):
    """From 0 up they hold no air: they are 1024 too high, or anything else."""
    for name, signed, intercept in (("shifted", False, 0), ("signed", True, 0), ("stated", False, -1024)):
        path = write_slice(tmp_path / f"{name}.dcm", abs(HU), signed=signed, intercept=intercept)
        if name != "stated":
            dataset = pydicom.dcmread(path)
            del dataset.RescaleIntercept, dataset.RescaleSlope
            dataset.save_as(path)
        if name == "shifted":
            with pytest.raises(DicomError, match="no rescale and no value below 0"):
                header_with(reader, path)
        else:
            np.testing.assert_array_equal(hu_with(reader, path), abs(HU))


def test_parse_header_accepts_derived_slices_without_modality(tmp_path):
    hu = read_written(tmp_path / "1.dcm", HU, Modality=None, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
    np.testing.assert_array_equal(hu, HU)


def test_dicomsdl_header_reads_long_headers(tmp_path):
    path = write_slice(tmp_path / "1.dcm", HU, ImageComments="x" * 10000)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091001, "OB", bytes(100_000))
    dataset.save_as(path)
    np.testing.assert_array_equal(hu_with("dicomsdl", path), HU)


@pytest.mark.parametrize("at", [0, 4, 8])
@EACH_READER
def test_read_stored_refuses_wrong_rle_segments(tmp_path, at, reader):
    path = write_slice(tmp_path / "1.dcm", np.tile(HU, (8, 8)), rle=True)
    header = read_header(LocalFile(path))
    content = bytearray(path.read_bytes())
    start = content.index(bytes([2, 0, 0, 0, 64, 0, 0, 0]), header.pixels_at)
    content[start + at : start + at + 4] = (0xFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DicomError):
        hu_with(reader, path)


def test_read_hu_keeps_fractions_of_the_rescale(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.array([[0.25, 100.75]]), slope=0.25)
    hu = read_hu(read_header(LocalFile(path)))
    assert hu.dtype == np.float32
    np.testing.assert_allclose(hu, [[0.25, 100.75]])


def test_read_hu_clips_values_beyond_int16(tmp_path):
    path = write_slice(tmp_path / "1.dcm", np.array([[40000, 0]]), signed=False)
    np.testing.assert_array_equal(read_hu(read_header(LocalFile(path))), [[32767, 0]])


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_read_hu_refuses_a_file_cut_short(tmp_path, rle, kept):
    path = write_slice(tmp_path / "1.dcm", np.tile(HU, (8, 8)), rle=rle)
    header = read_header(LocalFile(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DicomError):
        read_hu(header)


@pytest.mark.parametrize("content", [b"", b"not an image", bytes(500)])
def test_read_headers_refuses_other_files(tmp_path, content):
    path = tmp_path / "1.dcm"
    path.write_bytes(content)
    with pytest.raises(DicomError, match="not a readable DICOM file"):
        read_header(LocalFile(path))


@EACH_READER
def test_readers_raise_memory_error(tmp_path, monkeypatch, reader):
    path = write_slice(tmp_path / "1.dcm", HU, rle=True)
    header = header_with(reader, path)

    def no_room(*_, **__):
        raise MemoryError

    monkeypatch.setattr(pydicom_reader.pydicom, "dcmread", no_room)
    monkeypatch.setattr(dicom_readers.dicomsdl, "open_memory", no_room)
    with pytest.raises(MemoryError):
        header_with(reader, path)
    if reader == "pydicom":
        monkeypatch.undo()
        monkeypatch.setattr(pydicom_reader, "pixel_array", no_room)
    with pytest.raises(MemoryError):
        READERS[reader][1](header)
