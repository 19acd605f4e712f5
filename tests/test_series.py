"""A series is ordered and turned by its positions and orientations alone."""

import itertools

import numpy as np
import pytest
from dicom_files import SPACING_Z_MM, write_series, write_slice

from src.data.dicom import read_hu
from src.data.series import SeriesError, scan_series

IN_PLANE = [
    (cols, rows)
    for a, b in itertools.product(((1, 0, 0), (-1, 0, 0)), ((0, 1, 0), (0, -1, 0)))
    for cols, rows in ((a, b), (b, a))
]


def oriented_volume(series):
    return np.stack([series.orient(read_hu(header)) for header in series.headers])


@pytest.mark.parametrize(("along_cols", "along_rows"), IN_PLANE)
def test_every_axial_orientation_gives_the_same_volume(tmp_path, along_cols, along_rows):
    """Front up, the patient's left on the right, head first; off-centre, so that no flip goes unseen."""
    shift = (12, -8, 3)
    reference = scan_series(write_series(tmp_path / "reference", shift_mm=shift))
    turned = scan_series(
        write_series(tmp_path / "turned", shift_mm=shift, along_cols=along_cols, along_rows=along_rows)
    )
    volume = oriented_volume(turned)
    np.testing.assert_array_equal(volume, oriented_volume(reference))
    np.testing.assert_allclose(turned.z_mm, reference.z_mm)
    for one, other in ((turned.plane(k), reference.plane(k)) for k in (0, 11)):
        np.testing.assert_allclose(one.origin, other.origin, atol=1e-6)
        np.testing.assert_allclose(one.row_step, other.row_step, atol=1e-6)
        np.testing.assert_allclose(one.col_step, other.col_step, atol=1e-6)


def test_the_abdomen_lies_as_a_radiologist_expects(tmp_path):
    series = scan_series(write_series(tmp_path / "s", along_cols=(-1, 0, 0), along_rows=(0, -1, 0)))
    volume = oriented_volume(series)
    liver, spine = np.argwhere(volume == 120).mean(0), np.argwhere(volume == 600).mean(0)
    middle = (np.array(volume.shape) - 1) / 2
    assert liver[2] < middle[2] - 5  # the liver is on the image's left
    assert spine[1] > middle[1] + 5  # the spine is below
    assert liver[0] < middle[0] - 1  # the liver is on the side of the head, and the head comes first
    assert series.orientation == "RA"


def test_order_follows_positions_not_names_or_instance_numbers(tmp_path):
    for stem, z_mm in enumerate((10.0, -5.0, 5.0, 0.0), start=1):
        write_slice(
            tmp_path / f"{stem}.dcm", np.zeros((8, 8)), position_mm=(0, 0, z_mm), instance_number=stem
        )
    series = scan_series(tmp_path)
    assert [header.instance_number for header in series.headers] == [1, 3, 4, 2]
    assert series.z_mm.tolist() == [10, 5, 0, -5]
    assert series.spacing_z_mm == 5


def test_a_tilted_gantry_is_ordered_along_the_slice_normal(tmp_path):
    tilt = np.deg2rad(20)
    rows_axis = (0, np.cos(tilt), -np.sin(tilt))
    series = scan_series(write_series(tmp_path / "s", along_rows=rows_axis))
    np.testing.assert_allclose(-np.diff(series.z_mm), SPACING_Z_MM, atol=1e-6)


def test_duplicate_positions_keep_the_lowest_instance_number(tmp_path):
    for stem, z_mm in ((9, 0.0), (2, 0.0), (5, 3.0), (7, 0.004)):
        write_slice(
            tmp_path / f"{stem}.dcm", np.zeros((8, 8)), position_mm=(0, 0, z_mm), instance_number=stem
        )
    series = scan_series(tmp_path)
    assert [header.instance_number for header in series.headers] == [5, 2]
    assert [(r.source, r.reason) for r in series.rejected] == [
        ("7.dcm", "same position as another slice"),
        ("9.dcm", "same position as another slice"),
    ]


def test_files_that_do_not_belong_are_left_out_with_a_reason(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=4)
    (folder / "5.dcm").write_bytes(b"junk")
    write_slice(folder / "6.dcm", np.zeros((10, 12)), position_mm=(0, 0, 99), instance_number=6)
    series = scan_series(folder)
    assert len(series) == 4
    reasons = {item.source: item.reason for item in series.rejected}
    assert "not a readable DICOM file" in reasons["5.dcm"]
    assert "another size" in reasons["6.dcm"]


def test_coronal_and_empty_series_are_refused(tmp_path):
    coronal = write_series(tmp_path / "coronal", n_slices=3, along_rows=(0, 0, -1))
    with pytest.raises(SeriesError, match="not axial"):
        scan_series(coronal)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeriesError, match=r"no \.dcm file"):
        scan_series(tmp_path / "empty")
