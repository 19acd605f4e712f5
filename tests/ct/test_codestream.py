"""JPEG 2000 whose last tile-part states a wrong length is decoded as if the length were right."""

import numpy as np
import pytest
from pydicom.uid import JPEG2000, JPEG2000Lossless

from src.ct.codestream import with_tile_to_end
from src.ct.dicom_header import DicomError
from src.ct.pixels import read_hu
from tests.helpers.dicom_files import read_header
from tests.helpers.dicom_syntaxes import ramp, write_encoded

STORED = ramp(12, signed=False) // 2 + np.random.default_rng(0).integers(0, 20, (40, 48))


def write_j2k(path, change=0, syntax=JPEG2000Lossless, cut=0):
    """Write a slice whose Psot is larger by `change`, without the last `cut` bytes of its codestream."""
    write_encoded(path, STORED, syntax, bits_stored=12, signed=False)
    content = path.read_bytes()
    at, end = content.rindex(b"\xff\x90\x00\x0a") + 6, content.rindex(b"\xff\xd9")
    length = int.from_bytes(content[at : at + 4], "big")
    assert end - (at - 6) == length  # the tile-part lasts to the end marker
    content = content[:at] + (length + change).to_bytes(4, "big") + content[at + 4 :]
    if cut:
        content = content[: end + 2 - cut] + bytes(cut) + content[end + 2 :]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("syntax", [JPEG2000, JPEG2000Lossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("change", [1, 2, 100, 1 << 20, -1, -2, -100])
def test_read_hu_of_a_wrong_tile_length(tmp_path, syntax, change):
    whole = read_hu(read_header(write_j2k(tmp_path / "1.dcm", syntax=syntax)))
    mended = read_hu(read_header(write_j2k(tmp_path / "2.dcm", change, syntax)))
    np.testing.assert_array_equal(mended, whole)
    assert np.ptp(whole) > 1000


@pytest.mark.parametrize("cut", [2, 3, 200])
@pytest.mark.parametrize("change", [0, 1 << 20])
def test_read_hu_refuses_a_truncated_tile(tmp_path, change, cut):
    with pytest.raises(DicomError, match="cannot be decoded"):
        read_hu(read_header(write_j2k(tmp_path / "1.dcm", change, cut=cut)))


def tile_part(length, data=b"data"):
    return b"\xff\x90\x00\x0a\0\0" + length.to_bytes(4, "big") + b"\0\1" + data


def test_with_tile_to_end_changes_the_last_tile_part_only():
    start, end = b"\xff\x4f\xff\x51", b"\xff\xd9"
    right = start + tile_part(16) + tile_part(16) + end
    assert with_tile_to_end(right) == right
    assert with_tile_to_end(right + b"\0") == right + b"\0"
    wrong = start + tile_part(16) + tile_part(99) + end
    assert with_tile_to_end(wrong) == start + tile_part(16) + tile_part(0) + end
    assert with_tile_to_end(start + tile_part(0) + end) == start + tile_part(0) + end
    assert with_tile_to_end(wrong[:-2]) == wrong[:-2]
    assert with_tile_to_end(b"no JPEG 2000" + end) == b"no JPEG 2000" + end
