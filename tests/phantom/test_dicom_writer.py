"""Series of the phantom as DICOM: every encoding is lossless, and the quirks of real archives occur."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from src.phantom.dicom_writer import ENCODINGS, Storage, write_series
from src.phantom.voxel_grid import Scan
from tests.helpers.phantom_files import restore_volume


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize(("bits_stored", "signed", "intercept"), ENCODINGS)
@pytest.mark.parametrize("dirty", [False, True])
def test_write_series_is_lossless_in_every_encoding(tmp_path, syntax, bits_stored, signed, intercept, dirty):
    if dirty and (bits_stored == 16 or syntax == JPEG2000Lossless):
        pytest.skip("no unused bits to soil")
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 2001, (3, 40, 44), np.int16)
    scan = Scan(hu.shape, (5.0, 0.7, 0.7), (-10.0, -20.0, 300.0), (0.0, 0.0), 0.0)
    storage = Storage(syntax, bits_stored, signed, intercept, dirty, True, "FFS", (9, 4, 5), None)
    write_series(tmp_path, hu, scan, storage, 11, 22, rng)
    np.testing.assert_array_equal(restore_volume(tmp_path), hu)
    header = pydicom.dcmread(tmp_path / "9.dcm")
    assert (header.file_meta.TransferSyntaxUID, header.BitsStored) == (syntax, bits_stored)
    assert list(header.ImagePositionPatient) == pytest.approx([-10 + 43 * 0.7, -20 + 39 * 0.7, 300])


def test_write_series_with_dirty_high_bits(tmp_path):
    rng = np.random.default_rng(0)
    hu = np.zeros((1, 16, 16), np.int16)
    scan = Scan(hu.shape, (5.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0), 0.0)
    storage = Storage(ExplicitVRLittleEndian, 12, 1, 0, True, False, "HFS", (1,), None)
    write_series(tmp_path, hu, scan, storage, 1, 2, rng)
    words = np.frombuffer(pydicom.dcmread(tmp_path / "1.dcm").PixelData, "<u2")
    assert len(np.unique(words >> 12)) > 8 and not (words & 0xFFF).any()


def test_draw_storage_covers_all_quirks():
    rng = np.random.default_rng(0)
    drawn = [Storage.draw(40, rng) for _ in range(200)]
    assert len({(s.bits_stored, s.signed, s.intercept) for s in drawn}) == len(ENCODINGS)
    assert {s.syntax for s in drawn} == {ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless}
    assert {s.patient_position for s in drawn} == {"FFS", "HFS"}
    for quirk in ("dirty_high_bits", "turned"):
        assert {getattr(s, quirk) for s in drawn} == {True, False}
    repeated = [s for s in drawn if s.duplicate_of is not None]
    assert 0 < len(repeated) < len(drawn)
    assert all(len(s.instances()) == 41 for s in repeated)
