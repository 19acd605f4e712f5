"""Every encoding gives the HU of pydicom's own decoding, or the file is refused."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_rescale
from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, RLELossless

from src.ct import dicom_readers, pydicom_reader
from src.ct.dicom_header import DicomError
from src.ct.dicom_readers import read_headers
from src.ct.pixels import read_hu, stored_to_hu
from src.ct.storage import LocalFile
from tests.helpers.dicom_files import read_header, set_tags, write_slice
from tests.helpers.dicom_syntaxes import (
    NATIVE,
    SYNTAXES,
    can_write,
    ramp,
    tolerance,
    write_encoded,
    write_enhanced,
)

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
NOT_IN_PYDICOM = {"JPEG extended"}  # its plugins decode the 8-bit kind alone
INTERCEPT = -1024


def encodings():
    for name, syntax in SYNTAXES.items():
        for bits_stored in (10, 12, 13, 16):
            for signed in (False, True):
                if can_write(syntax, bits_stored, signed):
                    sign = "signed" if signed else "unsigned"
                    yield pytest.param(name, bits_stored, signed, id=f"{name}, {bits_stored} bits {sign}")


def write(path, name, bits_stored, signed, **options):
    stored = ramp(bits_stored, signed)
    tags = {"RescaleIntercept": INTERCEPT}
    return write_encoded(
        path, stored, SYNTAXES[name], bits_stored=bits_stored, signed=signed, **options, **tags
    )


def hu_of(path, pydicom_only=False):
    (header,) = read_headers(LocalFile(path), pydicom_only)
    return read_hu(header, pydicom_only)


def expected_hu(bits_stored, signed):
    return np.clip(ramp(bits_stored, signed) + INTERCEPT, -1024, 32767)


@pytest.mark.parametrize(("name", "bits_stored", "signed"), list(encodings()))
def test_read_hu_of_every_transfer_syntax(tmp_path, name, bits_stored, signed):
    options = {"dirty_bits": 0xFFFF} if SYNTAXES[name] in {*NATIVE, RLELossless} else {}
    path = write(tmp_path / "1.dcm", name, bits_stored, signed, **options)
    allowed = tolerance(SYNTAXES[name], bits_stored)
    np.testing.assert_allclose(hu_of(path), expected_hu(bits_stored, signed), atol=allowed)
    if name not in NOT_IN_PYDICOM:
        np.testing.assert_allclose(hu_of(path, pydicom_only=True), hu_of(path), atol=1 if allowed else 0)


@pytest.mark.parametrize(("name", "bits_stored", "signed"), list(encodings()))
def test_read_hu_of_fragments_without_an_offset_table(tmp_path, name, bits_stored, signed):
    if SYNTAXES[name] in {*NATIVE, RLELossless}:
        return
    whole = write(tmp_path / "1.dcm", name, bits_stored, signed)
    pieces = write(tmp_path / "2.dcm", name, bits_stored, signed, fragments=3, offset_table=False)
    np.testing.assert_array_equal(hu_of(pieces), hu_of(whole))


@pytest.mark.parametrize("syntax", [JPEG2000, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [False, True])
def test_read_hu_takes_the_sign_from_the_header(tmp_path, syntax, signed):
    stored = np.clip(ramp(12, signed), 0, 2000)  # the same bits whatever the sign
    path = write_encoded(
        tmp_path / "1.dcm", stored, syntax, bits_stored=12, signed=signed, codestream_signed=not signed
    )
    np.testing.assert_allclose(hu_of(path), stored, atol=tolerance(syntax, 12))


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [False, True])
def test_read_hu_of_a_codestream_deeper_than_the_stored_bits(tmp_path, syntax, signed):
    stored = ramp(12, signed)
    path = write_encoded(tmp_path / "1.dcm", stored, syntax, bits_stored=12, signed=signed, precision=16)
    np.testing.assert_array_equal(hu_of(path), np.maximum(stored, -1024))


@pytest.mark.parametrize("name", ["JPEG lossless", "JPEG lossless SV1", "JPEG-LS lossless"])
def test_read_hu_leaves_shallow_signed_codestreams_to_pydicom(tmp_path, name):
    path = write(tmp_path / "1.dcm", name, 12, True, BitsStored=16, HighBit=15)
    np.testing.assert_array_equal(hu_of(path), hu_of(path, pydicom_only=True))


@pytest.mark.parametrize("name", [name for name in SYNTAXES if SYNTAXES[name] not in NATIVE])
def test_read_hu_of_8_bits_in_16(tmp_path, name):
    """dicomsdl alone fills half of such an image and leaves the rest unset."""
    stored = ramp(8, False)
    try:
        path = write_encoded(
            tmp_path / "1.dcm", stored, SYNTAXES[name], bits_stored=8, signed=False, bits_allocated=16
        )
        hu = hu_of(path)
    except DicomError:
        return
    np.testing.assert_allclose(hu, stored, atol=tolerance(SYNTAXES[name], 8))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.dcm")), ids=lambda path: path.stem)
def test_read_hu_of_every_file_that_pydicom_ships(path):
    """Among them damaged ones, colour, other modalities, dose grids, segmentations and waveforms."""
    try:
        (header,) = read_headers(LocalFile(path))
    except DicomError as error:
        assert 0 < len(str(error)) < 100
        assert path.stem not in ("CT_small", "J2K_pixelrep_mismatch", "693_J2KI")  # CT slices
        return
    dataset = pydicom.dcmread(path)
    assert dataset.get("Modality", "CT") == "CT"
    expected = np.maximum(apply_rescale(dataset.pixel_array, dataset), -1024)
    if "PixelPaddingValue" in dataset:
        expected[dataset.pixel_array == dataset.PixelPaddingValue] = -1024
    np.testing.assert_array_equal(read_hu(header), expected)


JPEG_FAMILY = [name for name in SYNTAXES if name.startswith("JPEG")]


@pytest.mark.parametrize("pydicom_only", [False, True])
@pytest.mark.parametrize("name", JPEG_FAMILY)
def test_read_hu_refuses_a_codestream_of_another_size(tmp_path, name, pydicom_only):
    bits_stored = next(bits for bits in (12, 8) if can_write(SYNTAXES[name], bits, signed=False))
    path = write(tmp_path / "1.dcm", name, bits_stored, signed=False)
    rows, cols = ramp(bits_stored, signed=False).shape
    set_tags(path, Rows=cols, Columns=rows)
    with pytest.raises(DicomError):
        hu_of(path, pydicom_only)


@pytest.mark.parametrize("name", [name for name in JPEG_FAMILY if "2000" not in name])
def test_read_hu_refuses_a_jpeg_without_its_end(tmp_path, name):
    bits_stored = next(bits for bits in (12, 8) if can_write(SYNTAXES[name], bits, signed=False))
    path = write(tmp_path / "1.dcm", name, bits_stored, signed=False)
    (frame,) = generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)
    set_tags(path, PixelData=encapsulate([frame[: int(len(frame) * 0.9)]]))
    with pytest.raises(DicomError):
        hu_of(path)


@pytest.mark.parametrize("name", ["implicit little endian", "explicit little endian", "explicit big endian"])
def test_read_hu_of_an_old_file_without_preamble(tmp_path, name):
    path = write(tmp_path / "1.dcm", name, bits_stored=12, signed=False)
    dataset = pydicom.dcmread(path)
    implicit, little = name.startswith("implicit"), "little" in name
    dataset.file_meta, dataset.preamble = FileMetaDataset(), None
    with path.open("wb") as file:
        pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(hu_of(path), expected_hu(12, signed=False))


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
UNSIGNED = {"signed": False, "intercept": -1024}
ENCODINGS = {
    "16-bit signed": {},
    "12-bit signed under dirty bits": {"bits_stored": 12, "dirty_bits": 0x5000},
    "13-bit unsigned under dirty bits": UNSIGNED | {"bits_stored": 13, "dirty_bits": 0xE000},
    "intercept -8192": {"signed": False, "intercept": -8192},
    "intercept -32768": {"signed": False, "intercept": -32768},
    "MONOCHROME1 unsigned": UNSIGNED | {"bits_stored": 12, "photometric": "MONOCHROME1"},
    "MONOCHROME1 signed": {"bits_stored": 12, "photometric": "MONOCHROME1"},
    "slope 0.5": UNSIGNED | {"slope": 0.5},
    "RLE": {"rle": True},
    "RLE, 12-bit signed under dirty bits": {"rle": True, "bits_stored": 12, "dirty_bits": 0xA000},
}


@pytest.mark.parametrize("name", ENCODINGS)
@EACH_READER
def test_stored_to_hu_restores_every_encoding(tmp_path, name, reader):
    truth = HU / 2 if name == "slope 0.5" else HU
    path = write_slice(tmp_path / "1.dcm", truth, **ENCODINGS[name])
    hu = hu_with(reader, path)
    np.testing.assert_array_equal(hu, truth)
    assert hu.dtype == (np.float32 if name == "slope 0.5" else np.int16)


def test_both_readers_give_the_same_header(tmp_path):
    path = write_slice(tmp_path / "7.dcm", HU, position_mm=(-1.5, 2, 3.25), instance_number=7, padding=-2000)
    assert header_with("dicomsdl", path) == header_with("pydicom", path)


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
    header = read_header(path)
    content = bytearray(path.read_bytes())
    start = content.index(bytes([2, 0, 0, 0, 64, 0, 0, 0]), header.pixels_at)
    content[start + at : start + at + 4] = (0xFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DicomError):
        hu_with(reader, path)


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.999])
def test_read_hu_refuses_a_file_cut_short(tmp_path, rle, kept):
    path = write_slice(tmp_path / "1.dcm", np.tile(HU, (8, 8)), rle=rle)
    header = read_header(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DicomError):
        read_hu(header)


@pytest.mark.parametrize("content", [b"", b"not an image", bytes(500)])
def test_read_headers_refuses_other_files(tmp_path, content):
    path = tmp_path / "1.dcm"
    path.write_bytes(content)
    with pytest.raises(DicomError, match="not a readable DICOM file"):
        read_header(path)


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


PACKED = ("explicit big endian", "deflated")  # as a whole, or word by word


@pytest.mark.parametrize("name", [name for name in SYNTAXES if name not in PACKED])
@pytest.mark.parametrize("layout", ["a table", "no table", "fragments", "fragments without a table"])
def test_read_frames(tmp_path, name, layout):
    syntax, n_frames, bits_stored = SYNTAXES[name], 3, 8 if name == "JPEG baseline" else 12
    pieces = "fragments" in layout
    if pieces and (syntax in NATIVE or (syntax == RLELossless and "without" in layout)):  # no end to be seen
        return
    stored = np.stack([ramp(bits_stored, False) // (index + 1) for index in range(n_frames)])
    path = write_enhanced(
        tmp_path / "1.dcm",
        stored,
        syntax,
        bits_stored=bits_stored,
        signed=False,
        positions_mm=[(-20, -10, 5 * index) for index in range(n_frames)],
        pixel_mm=(0.7, 0.8),
        intercept=-1000,
        fragments=2 if pieces else 1,
        offset_table="no table" not in layout and "without" not in layout,
    )
    headers = read_headers(LocalFile(path))
    assert [header.position_mm[2] for header in headers] == [0, 5, 10]
    assert {(header.row_mm, header.col_mm) for header in headers} == {(0.7, 0.8)}
    assert headers[2].file.name == "1.dcm frame 3"
    for header, frame in zip(headers, stored, strict=True):
        np.testing.assert_allclose(read_hu(header), frame - 1000, atol=tolerance(syntax, bits_stored))


@pytest.mark.parametrize("name", PACKED)
def test_read_frames_refuses_deflated_and_big_endian(tmp_path, name):
    stored = np.stack([ramp(12, False)] * 2)
    where = {"positions_mm": [(0, 0, 0), (0, 0, 5)]}
    path = write_enhanced(tmp_path / "1.dcm", stored, SYNTAXES[name], bits_stored=12, signed=False, **where)
    with pytest.raises(DicomError, match="many frames in the transfer syntax"):
        read_headers(LocalFile(path))
