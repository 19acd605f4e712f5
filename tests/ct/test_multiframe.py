"""Frames of an enhanced CT are slices."""

import numpy as np
import pytest
from pydicom.uid import RLELossless

from src.ct.dicom_header import DicomError
from src.ct.dicom_readers import read_headers
from src.ct.pixels import read_hu
from src.ct.storage import LocalFile
from tests.helpers.dicom_syntaxes import (
    NATIVE,
    SYNTAXES,
    ramp,
    tolerance,
    write_enhanced,
)

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
