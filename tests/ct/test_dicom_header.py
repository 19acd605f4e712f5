"""Headers of CT slices are read; those of other images are refused with a reason."""

import numpy as np
import pytest

from src.ct.dicom_header import DicomError
from tests.helpers.dicom_files import read_header, write_slice

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
        ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient is missing or malformed"),
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


def test_parse_header_accepts_derived_slices_without_modality(tmp_path):
    tags = {"Modality": None, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}
    header = read_header(write_slice(tmp_path / "1.dcm", HU, **tags))
    assert (header.modality, header.image_type) == ("", "DERIVED\\SECONDARY\\AXIAL")
