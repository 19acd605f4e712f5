"""Headers of CT slices are read; those of other images are refused with a reason."""

import numpy as np
import pytest

from src.ct.dicom_header import DicomError
from src.ct.dicom_readers import read_headers
from src.ct.storage import LocalFile
from tests.helpers.dicom_files import read_header, set_decimal_text, write_slice

HU = np.random.default_rng(0).integers(-1000, 1000, (24, 20))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "MR"}, "modality MR, not CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"NumberOfFrames": 3}, "holds 3 frames"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient is missing"),
        ({"ImageOrientationPatient": [1, 0, 0]}, r"ImageOrientationPatient is malformed: 1.0\\0.0\\0.0"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "makes no sense"),
        ({"PixelSpacing": [0, 0]}, "makes no sense"),
        ({"Rows": 65535, "Columns": 65535}, "makes no sense"),
        ({"BitsStored": 12, "BitsAllocated": 8}, "makes no sense"),
        ({"bits_stored": 8}, "signed 8-bit pixels are neither HU nor grey levels"),
        ({"RescaleType": "MGML"}, "pixels are MGML, not HU"),
    ],
)
def test_parse_header_refuses_other_images(tmp_path, tags, reason):
    path = write_slice(tmp_path / "1.dcm", HU, **tags)
    with pytest.raises(DicomError, match=reason):
        read_header(path)


@pytest.mark.parametrize(
    ("keyword", "text", "shown"),
    [
        ("RescaleSlope", "1.5.2", "1.5.2"),  # dicomsdl reads 1.5
        ("RescaleIntercept", "-1,024.0", "-1,024.0"),  # and here -1
        ("RescaleSlope", "one\xb5", r"one\xb5"),
        ("PixelSpacing", "0.7,0.7", "0.7,0.7"),
        ("ImagePositionPatient", "1;2;3", "1;2;3"),
    ],
)
@pytest.mark.parametrize("pydicom_only", [False, True])
def test_parse_header_shows_a_number_that_cannot_be_read(tmp_path, keyword, text, shown, pydicom_only):
    path = set_decimal_text(write_slice(tmp_path / "1.dcm", HU), keyword, text)
    with pytest.raises(DicomError) as refusal:
        read_headers(LocalFile(path), pydicom_only)
    assert str(refusal.value) == f"{keyword} is malformed: {shown}"


@pytest.mark.parametrize("pydicom_only", [False, True])
def test_parse_header_reads_decimal_commas(tmp_path, pydicom_only):
    texts = {"RescaleSlope": "1,5", "RescaleIntercept": "-1024,5", "ImagePositionPatient": "-10,5\\2\\-3,25 "}
    path = write_slice(tmp_path / "1.dcm", HU)
    for keyword, text in texts.items():
        set_decimal_text(path, keyword, text)
    (header,) = read_headers(LocalFile(path), pydicom_only)
    assert (header.slope, header.intercept, header.position_mm) == (1.5, -1024.5, (-10.5, 2, -3.25))
    named = "ImagePositionPatient, RescaleIntercept, RescaleSlope"
    assert header.mended == (f"decimal commas read as points in {named}",)


@pytest.mark.parametrize("pydicom_only", [False, True])
def test_parse_header_takes_empty_rescale_tags_for_missing_ones(tmp_path, pydicom_only):
    path = write_slice(tmp_path / "1.dcm", HU, RescaleSlope=None, RescaleIntercept=None)
    (header,) = read_headers(LocalFile(path), pydicom_only)
    assert (header.slope, header.intercept, header.mended) == (1, 0, ())


def test_parse_header_accepts_derived_slices_without_modality(tmp_path):
    tags = {"Modality": None, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}
    header = read_header(write_slice(tmp_path / "1.dcm", HU, **tags))
    assert (header.modality, header.image_type) == ("", "DERIVED\\SECONDARY\\AXIAL")
