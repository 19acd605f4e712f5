"""A series is ordered and turned by its positions and orientations alone."""

import itertools
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from src.core.isolation import no_report
from src.ct import dicom_series
from src.ct.series import READ_ALL, ReadSettings, Rejected, SeriesError
from src.ct.windows import WINDOWS
from tests.helpers.dicom_files import SIDE, SPACING_Z_MM, read_volume, scan_series, write_series, write_slice
from tests.helpers.dicom_syntaxes import write_enhanced
from tests.helpers.nifti_files import on_plane

IN_PLANE = [
    (cols, rows)
    for a, b in itertools.product(((1, 0, 0), (-1, 0, 0)), ((0, 1, 0), (0, -1, 0)))
    for cols, rows in ((a, b), (b, a))
]


@pytest.mark.parametrize(("along_cols", "along_rows"), IN_PLANE)
def test_read_turns_every_axial_orientation(tmp_path, along_cols, along_rows):
    """Front up, the patient's left on the right, head first; off-centre, so that no flip goes unseen."""
    place = {"shift_mm": (12, -8, 3), "along_cols": along_cols, "along_rows": along_rows}
    series = scan_series(write_series(tmp_path, **place))
    towards = {(1, 0, 0): "L", (-1, 0, 0): "R", (0, 1, 0): "P", (0, -1, 0): "A"}
    assert series.orientation == towards[along_cols] + towards[along_rows]
    np.testing.assert_allclose(np.diff(series.z_mm), -SPACING_Z_MM)
    for index, z_mm in enumerate(series.z_mm):
        plane = series.plane(index)
        assert plane.col_step[0] > 0 and plane.row_step[1] > 0 and plane.origin[2] == pytest.approx(z_mm)
        np.testing.assert_array_equal(series.read(index), on_plane(plane, (SIDE, SIDE)))


def write_stack(folder, *places):
    """Slices of a stem, which is their InstanceNumber, and a height in mm."""
    for stem, z_mm in places:
        where = {"position_mm": (0, 0, z_mm), "instance_number": stem}
        write_slice(folder / f"{stem}.dcm", np.zeros((8, 8)), **where)
    return scan_series(folder)


def test_scan_series_orders_by_position(tmp_path):
    series = write_stack(tmp_path, (1, 10.0), (2, -5.0), (3, 5.0), (4, 0.0))
    assert [header.instance_number for header in series.headers] == [1, 3, 4, 2]
    assert series.z_mm.tolist() == [10, 5, 0, -5]


def test_scan_series_orders_a_tilted_gantry_along_the_slice_normal(tmp_path):
    tilt = np.deg2rad(20)
    rows_axis = (0, np.cos(tilt), -np.sin(tilt))
    series = scan_series(write_series(tmp_path / "s", along_rows=rows_axis))
    np.testing.assert_allclose(-np.diff(series.z_mm), SPACING_Z_MM, atol=1e-6)


def test_scan_series_keeps_the_lowest_instance_number_of_a_position(tmp_path):
    series = write_stack(tmp_path, (9, 0.0), (2, 0.0), (5, 3.0), (7, 0.004))
    assert [header.instance_number for header in series.headers] == [5, 2]
    assert [(r.source, r.reason) for r in series.rejected] == [
        ("7.dcm", "same position as another slice"),
        ("9.dcm", "same position as another slice"),
    ]


def test_scan_series_rejects_unreadable_and_foreign_files(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=4)
    (folder / "5.dcm").write_bytes(b"junk")
    write_slice(folder / "6.dcm", np.zeros((10, 12)), position_mm=(0, 0, 99), instance_number=6)
    series = scan_series(folder)
    assert len(series.z_mm) == 4
    reasons = {item.source: item.reason for item in series.rejected}
    assert "not a readable DICOM file" in reasons["5.dcm"]
    assert "another size" in reasons["6.dcm"]


def test_scan_series_refuses_coronal_and_empty_series(tmp_path):
    coronal = write_series(tmp_path / "coronal", n_slices=3, along_rows=(0, 0, -1))
    with pytest.raises(SeriesError, match="not axial"):
        scan_series(coronal)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeriesError, match=r"no \.dcm file"):
        scan_series(tmp_path / "empty")


def test_scan_series_rejects_reformats_that_call_themselves_axial(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=6)
    axial = ["DERIVED", "SECONDARY", "AXIAL"]
    write_series(folder, n_slices=20, first=7, along_rows=(0, 0, -1), ImageType=axial)
    write_series(folder, n_slices=20, first=27, along_cols=(0, 1, 0), along_rows=(0, 0, -1), ImageType=axial)
    series = scan_series(folder)
    assert len(series.z_mm) == 6
    assert {item.reason for item in series.rejected} == {"not axial"}


def test_scan_series_keeps_gaps(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=12)
    for stem in (4, 5, 9):
        (folder / f"{stem}.dcm").unlink()
    gaps = -np.diff(scan_series(folder).z_mm) / SPACING_Z_MM
    np.testing.assert_allclose(sorted(gaps), [1, 1, 1, 1, 1, 1, 2, 3])


def write_windowed(folder, window, **encoding):
    """8-bit images of the grey levels that a window shows, without a rescale."""
    for path in write_series(folder / "hu").iterdir():
        dataset = pydicom.dcmread(path)
        tags = {"position_mm": dataset.ImagePositionPatient, "instance_number": dataset.InstanceNumber}
        grey = window.grey(dataset.pixel_array)
        write_slice(folder / path.name, grey, bits_stored=8, signed=False, **tags, **encoding)
    return folder


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_scan_series_turns_8_bit_images_into_hu_by_their_window(tmp_path, photometric):
    window = WINDOWS["wide"]
    series = scan_series(write_windowed(tmp_path, window, photometric=photometric), source_window=window)
    assert series.source_window == window
    truth = read_volume(scan_series(tmp_path / "hu"))
    volume = read_volume(series)
    np.testing.assert_array_equal(window.grey(volume), window.grey(truth))
    inside = abs(truth - window.centre_hu) < window.width_hu / 2
    np.testing.assert_allclose(volume[inside], truth[inside], atol=window.width_hu / 255 / 2 + 1e-3)


def test_scan_series_refuses_8_bit_images_without_a_window(tmp_path):
    with pytest.raises(SeriesError, match="--source-window"):
        scan_series(write_windowed(tmp_path, WINDOWS["soft"]))


def test_scan_series_ignores_the_window_for_hu(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=4)
    series = scan_series(folder, source_window=WINDOWS["soft"])
    assert series.source_window is None
    np.testing.assert_array_equal(read_volume(series), read_volume(scan_series(folder)))


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ({"slope": 400 / 255, "intercept": -150}, {"soft", "organ"}),
        ({"slope": 1.5686, "intercept": -150}, {"soft", "organ"}),  # 249.99 HU at the most, as it was rounded
        ({"slope": -400 / 255, "intercept": 250}, {"soft", "organ"}),
        ({"slope": 1, "intercept": -90}, {"organ"}),
        ({"slope": 8, "intercept": -1024}, {"soft", "organ", "wide"}),
    ],
)
def test_source_window_of_8_bits_with_a_rescale(tmp_path, encoding, shown):
    hu = np.full((8, 8), 40)
    write_slice(tmp_path / "1.dcm", hu, bits_stored=8, signed=False, **encoding)
    series = scan_series(tmp_path)
    assert {name for name, window in WINDOWS.items() if series.source_window.contains(window)} == shown
    assert abs(series.read(0) - 40).max() <= 4  # and are HU by themselves
    write_slice(tmp_path / "2.dcm", hu, bits_stored=8, signed=False, position_mm=(0, 0, 5), intercept=-20)
    narrow = scan_series(tmp_path).source_window  # what every slice can hold
    assert narrow.lowest_hu >= -20
    assert not narrow.contains(WINDOWS["wide"])


def test_lowest_level_of_8_bits_with_a_rescale_is_no_body(tmp_path):
    """Level 0 of a narrow range lies above air, and at or below what the series calls its lowest."""
    hu = np.full((8, 8), -150.4)
    hu[4, 4] = 40
    write_slice(tmp_path / "1.dcm", hu, bits_stored=8, signed=False, intercept=-150.4)
    series = scan_series(tmp_path)
    assert np.median(series.read(0)) <= series.source_window.lowest_hu == -150


def test_keep_main_grid_separates_hu_from_grey_levels(tmp_path):
    folder = write_windowed(tmp_path, WINDOWS["soft"])
    for stem in range(1, 8):
        (folder / "hu" / f"{stem}.dcm").replace(folder / f"{stem}.dcm")
    series = scan_series(folder, source_window=WINDOWS["soft"])
    assert series.source_window is None
    assert len(series.z_mm) == 7
    assert all("kind of pixels" in item.reason for item in series.rejected)


def test_scan_series_passes_over_left_out_files_and_frames(tmp_path):
    folder = write_series(tmp_path / "s", n_slices=3)
    stored = np.stack([np.zeros((64, 64), int)] * 2)
    heights = [(-126, -126, z) for z in (50, 55)]
    where = {"positions_mm": heights, "pixel_mm": (4, 4)}
    write_enhanced(folder / "9.dcm", stored, RLELossless, bits_stored=12, signed=False, **where)
    (folder / "4.dcm").write_bytes(b"what crashes a reader")
    left_out = tuple(Rejected(name, "crashes") for name in ("2.dcm", "4.dcm", "9.dcm frame 1"))
    series = scan_series(folder, settings=ReadSettings(left_out=left_out))
    assert series.rejected == ()
    assert [series.source(index) for index in range(3)] == ["9.dcm frame 2", "3.dcm", "1.dcm"]
    assert series.instance_number(0) == 2


def test_is_regular_only_if_no_guard_would_reject_a_slice(tmp_path):
    headers, rejected, remarks = list(scan_series(write_series(tmp_path)).headers), [], []
    assert dicom_series._is_regular(headers)
    z_mm = dicom_series.positions_along_normal(headers)
    assert dicom_series.exclude_copies(headers, READ_ALL, no_report, rejected) == headers
    assert dicom_series.keep_one_acquisition(headers, z_mm, rejected, remarks) == headers
    for name in ("keep_one_scan", "keep_main_grid", "keep_main_centre", "keep_unrepeated_numbers"):
        assert getattr(dicom_series, name)(headers, rejected, remarks) == headers
    assert not rejected and not remarks
    irregular = {"instance_number": 5, "acquisition_number": 2, "rows": 63, "position_mm": (-120, 0, 0)}
    irregular |= {"patient_id": "P2", "study_uid": "1.9", "series_uid": "1.9", "frame_uid": "1.9"}
    for name, value in irregular.items():
        assert not dicom_series._is_regular([*headers[:-1], replace(headers[-1], **{name: value})])
