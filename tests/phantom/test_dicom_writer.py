"""Series of the phantom as DICOM: every encoding is lossless, and the quirks of real archives occur."""

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from src.phantom.dicom_writer import ENCODINGS, Storage, write_series
from src.phantom.voxel_grid import Scan
from tests.helpers.phantom_files import read_slices, restore_volume

CASES = [
    (syntax, *encoding, dirty)
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless)
    for encoding in ENCODINGS
    for dirty in (False, True)
    if not dirty or (encoding[0] < 16 and syntax != JPEG2000Lossless)  # else there are no unused bits
]


@pytest.mark.parametrize(("syntax", "bits_stored", "signed", "intercept", "dirty"), CASES)
def test_write_series_is_lossless_in_every_encoding(tmp_path, syntax, bits_stored, signed, intercept, dirty):
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 2001, (3, 40, 44), np.int16)
    scan = Scan(hu.shape, (5.0, 0.7, 0.7), (-10.0, -20.0, 300.0), (0.0, 0.0), 0.0)
    storage = Storage(syntax, bits_stored, signed, intercept, dirty, True, "FFS", (9, 4, 5), 1)
    write_series(tmp_path, hu, scan, storage, 11, 22, rng)
    np.testing.assert_array_equal(restore_volume(tmp_path), hu)
    slices = {int(header.InstanceNumber): (header, values) for header, values in read_slices(tmp_path)}
    assert set(slices) == {9, 4, 5, 10}
    np.testing.assert_array_equal(slices[10][1], slices[4][1])
    header = slices[9][0]
    if syntax == ExplicitVRLittleEndian:
        unused = np.frombuffer(header.PixelData, "<u2") >> bits_stored
        assert (len(np.unique(unused)) > 2) == dirty  # the sign fills them with 0 or 1 alone
    assert (header.file_meta.TransferSyntaxUID, header.BitsStored) == (syntax, bits_stored)
    assert (header.PatientID, header.Modality) == ("11", "CT")
    assert (header.WindowCenter, header.WindowWidth) == (50, 400)
    assert tuple(header.PixelSpacing) == pytest.approx((0.7, 0.7))
    assert list(header.ImagePositionPatient) == pytest.approx([-10 + 43 * 0.7, -20 + 39 * 0.7, 300])


def test_draw_storage_covers_all_quirks():
    rng = np.random.default_rng(0)
    drawn = [Storage.draw(40, rng) for _ in range(200)]
    assert len({(s.bits_stored, s.signed, s.intercept) for s in drawn}) == len(ENCODINGS)
    assert {s.syntax for s in drawn} == {ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless}
    assert {s.patient_position for s in drawn} == {"FFS", "HFS"}
    for quirk in ("dirty_high_bits", "turned"):
        assert {getattr(s, quirk) for s in drawn} == {True, False}
    in_order = [list(s.instance_numbers) == sorted(s.instance_numbers) for s in drawn]
    assert 0 < sum(in_order) < len(drawn) / 2
    repeated = [s for s in drawn if s.duplicate_of is not None]
    assert 0 < len(repeated) < len(drawn)
    assert all(len(s.instances()) == 41 for s in repeated)
