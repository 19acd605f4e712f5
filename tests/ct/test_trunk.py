"""The square follows the trunk: shoulders and arms do not set it, and nothing of a trunk is cut."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from src.ct.nifti import open_nifti
from src.ct.storage import LocalFile
from src.ct.trunk import find_trunk
from src.ct.windows import AIR_HU
from src.data.selection import even_indices
from src.prepare.grey_slices import body_crop

MM = 3.0
SIDE = 180
Y, X = np.mgrid[:SIDE, :SIDE] * MM - (SIDE - 1) * MM / 2
TRUNK_MM, DEPTH_MM = 300.0, 220.0
REAL = sorted((Path(__file__).resolve().parents[3] / "shared/data/ct/series").glob("*.nii.gz"))


def ellipse(x_mm, y_mm, width_mm, height_mm):
    """(rows, cols) bool"""
    return (2 * (X - x_mm) / width_mm) ** 2 + (2 * (Y - y_mm) / height_mm) ** 2 < 1


def draw(hu, where, value):
    """Draw tissue where there is air or less dense tissue."""
    hu[where] = np.maximum(hu[where], value)


def abdomen(width_mm=TRUNK_MM):
    """Fat, muscle, spine, and gas in the bowel; HU (rows, cols)."""
    hu = np.full((SIDE, SIDE), -1000.0)
    hu[ellipse(0, 0, width_mm, DEPTH_MM)] = -100
    hu[ellipse(0, 0, width_mm - 30, DEPTH_MM - 30)] = 50
    hu[ellipse(0, 70, 40, 40)] = 500
    hu[ellipse(40, -50, 40, 30)] = -1000
    return hu


def chest(lungs_mm=110.0):
    hu = abdomen()
    for x_mm in (-70, 70):
        hu[ellipse(x_mm, 0, lungs_mm, 1.4 * lungs_mm)] = -850
    hu[ellipse(0, 70, 40, 40)] = 500
    for x_mm in (-125, 125):
        hu[ellipse(x_mm, 0, 10, 40)] = 600  # ribs
    return hu


def shoulders(lungs_mm=50.0):
    hu = chest(lungs_mm)
    draw(hu, ellipse(0, 20, 500, 160), 40)
    for x_mm in (-200, 200):
        draw(hu, ellipse(x_mm, 20, 40, 40), 700)
    for x_mm in (-70, 70):
        hu[ellipse(x_mm, 0, lungs_mm, 1.4 * lungs_mm)] = -850
    return hu


def head():
    hu = np.full((SIDE, SIDE), -1000.0)
    hu[ellipse(0, 0, 150, 190)] = 900
    hu[ellipse(0, 0, 130, 170)] = 35
    return hu


def add_arm(hu, x_mm, y_mm=20.0, width_mm=80.0):
    draw(hu, ellipse(x_mm, y_mm, width_mm, 80), 50)
    draw(hu, ellipse(x_mm, y_mm, 26, 26), 900)
    return hu


def arms_at_the_sides(hu, overlap_mm=4.0, sides=(-1, 1)):
    for sign in sides:
        add_arm(hu, sign * (TRUNK_MM / 2 + 40 - overlap_mm), y_mm=0.0)
    return hu


def noisy(slices, noise_hu=12):
    rng = np.random.default_rng(0)
    return [(hu + rng.normal(0, noise_hu, hu.shape)).clip(AIR_HU, 3071).astype(np.int16) for hu in slices]


def width_mm(slices):
    crop = body_crop(noisy(slices), (MM, MM), slices[0].shape)
    return crop.width * MM


def holds(slices, left_mm, right_mm, top_mm=-DEPTH_MM / 2, bottom_mm=DEPTH_MM / 2):
    """Return whether the square holds this rectangle; millimetres from the image's centre."""
    rows, cols = slices[0].shape
    crop = body_crop(noisy(slices), (MM, MM), (rows, cols))
    edges = crop.left, crop.left + crop.width, crop.top, crop.top + crop.height
    left, right, top, bottom = (edge * MM - SIDE * MM / 2 for edge in edges)
    return left <= left_mm and right >= right_mm and top <= top_mm and bottom >= bottom_mm


def scan(n_shoulders=6, n_chest=12, n_abdomen=18):
    lungs = np.linspace(30, 75, n_shoulders)
    return [
        *(shoulders(each) for each in lungs),
        *(chest() for _ in range(n_chest)),
        *(abdomen() for _ in range(n_abdomen)),
    ]


TRUNK = (-TRUNK_MM / 2, TRUNK_MM / 2)


def test_shoulders_do_not_set_the_square():
    assert width_mm(scan()) < TRUNK_MM + 30
    assert holds(scan(), *TRUNK)


def test_whole_body_with_raised_arms_and_legs():
    above = [head() for _ in range(5)]
    for hu in above:
        for x_mm in (-130, 130):
            add_arm(hu, x_mm)
        draw(hu, (np.abs(X) < 200) & (np.abs(Y - 20) < 15), 40)  # joins them
    legs = []
    for _ in range(5):
        hu = np.full((SIDE, SIDE), -1000.0)
        for x_mm in (-75, 75):
            draw(hu, ellipse(x_mm, 0, 155, 160), 40)
            draw(hu, ellipse(x_mm, 0, 35, 35), 900)
        legs.append(hu)
    series = [*above, *scan(), *legs]
    assert width_mm(series) < TRUNK_MM + 30
    assert holds(series, *TRUNK)


@pytest.mark.parametrize("sides", [(-1, 1), (-1,), (1,)])
@pytest.mark.parametrize("overlap_mm", [0.0, 4.0, 8.0])
def test_arms_that_touch_the_abdomen_do_not_set_the_square(sides, overlap_mm):
    series = [
        *(abdomen() for _ in range(4)),
        *(arms_at_the_sides(abdomen(), overlap_mm, sides) for _ in "12"),
    ]
    assert width_mm(series) < TRUNK_MM + 60  # a rim of the arm stays; with both arms it is 480 mm
    assert holds(series, *TRUNK)


def with_breasts():
    hu = chest()
    for x_mm in (-90, 90):
        draw(hu, ellipse(x_mm, -80, 170, 120), -90)
    return hu


def with_folds_cut_by_the_field_of_view():
    hu = abdomen(380)
    for sign in (-1, 1):
        draw(hu, ellipse(sign * 190, 60, 160, 60), -100)
    return hu[:, 20:160]


def with_a_narrow_fold():
    hu = abdomen()
    draw(hu, ellipse(-185, 40, 110, 80), -100)  # as round as an arm, without bone
    return hu


def on_an_attached_table():
    hu = abdomen()
    draw(hu, (np.abs(Y - 115) < 15) & (np.abs(X) < 215), 100)
    return hu


def arms_crossed_on_the_belly():
    hu = abdomen()
    for x_mm in (-70, 0, 70):
        add_arm(hu, x_mm, y_mm=-135.0)
    return hu


def two_thighs():
    hu = np.full((SIDE, SIDE), -1000.0)
    for x_mm, width in ((-95, 200), (95, 190)):
        draw(hu, ellipse(x_mm, 0, width, 200), 40)
        draw(hu, ellipse(x_mm, 0, 35, 35), 900)
    return hu


def lungs_cut_at_one_side():
    return chest(130.0)[:, : SIDE // 2 + 26]


def half_a_chest():
    return chest(130.0)[:, SIDE // 2 - 10 :]


@pytest.mark.parametrize(
    "make",
    [
        abdomen,
        chest,
        with_breasts,
        with_folds_cut_by_the_field_of_view,
        with_a_narrow_fold,
        on_an_attached_table,
        arms_crossed_on_the_belly,
        two_thighs,
        lungs_cut_at_one_side,
        half_a_chest,
    ],
)
def test_what_may_be_trunk_stays_as_it_was(make):
    whole, trunk = find_trunk(noisy([make()]), (MM, MM), AIR_HU)
    assert trunk == whole


def test_upside_down_series_keeps_the_hips():
    series = [
        *(abdomen(400) for _ in range(12)),
        *(chest(lungs) for lungs in (60, 80, 100, 110, 110, 90, 60)),
    ]
    assert holds(series, -200, 200)


def test_lungs_between_the_shoulders_stay():
    """An upper chest that is wider than all below: 250 mm from lung to lung, and its wall."""
    series = [*(shoulders(lungs) for lungs in (20, 30, 40, 40)), *(chest() for _ in range(6))]
    for hu in series[:4]:
        for x_mm in (-100, 100):
            hu[ellipse(x_mm, 0, 50, 70)] = -850
    for hu in series[4:]:
        hu[np.abs(X) > 110] = -1000
    assert holds(series, -140, 140)


def test_chest_alone_keeps_the_lungs():
    series = scan(n_shoulders=6, n_chest=8, n_abdomen=0)
    assert holds(series, *TRUNK)


def test_shoulders_alone_stay_whole():
    assert width_mm([shoulders(each) for each in (10, 30, 50)]) >= 500


def test_square_that_would_hardly_change_stays_around_the_whole_body():
    series = [*(abdomen() for _ in range(4)), add_arm(abdomen(), TRUNK_MM / 2 - 34)]
    whole, _ = find_trunk(noisy(series), (MM, MM), AIR_HU)
    crop = body_crop(noisy(series), (MM, MM), series[0].shape)
    assert crop.width * MM == pytest.approx((whole[2] - whole[0]) * MM + 12, abs=MM)


def trunk_columns(hu, mm):
    """First and last column of what is left of the body without parts thinner than 40 mm."""
    size = 2 * round(20 / mm) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    outlines, _ = cv2.findContours((hu > -300).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    solid = cv2.drawContours(np.zeros(hu.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    _, _, stats, _ = cv2.connectedComponentsWithStats(cv2.morphologyEx(solid, cv2.MORPH_OPEN, disc))
    left, _, width, *_ = stats[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])]
    return left, left + width


def slices_of(path):
    with open_nifti(LocalFile(path)) as series:
        indices = even_indices(len(series.z_mm), min(64, len(series.z_mm)))
        return [np.array(series.read(int(index))) for index in indices], series.pixel_mm


@pytest.mark.skipif(not REAL, reason="no real CT in ../shared/data/ct/series")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name.split(".")[0])
@pytest.mark.parametrize("field_mm", [None, 420, 340])
def test_real_series_keep_all_of_the_trunk_below_the_shoulders(path, field_mm):
    slices, pixel_mm = slices_of(path)
    if field_mm:  # off centre, as around an injured organ
        half = round(field_mm / 2 / pixel_mm[0])
        row, col = slices[0].shape[0] // 2, slices[0].shape[1] // 2 + round(30 / pixel_mm[1])
        window = np.s_[max(row - half, 0) : row + half, max(col - half, 0) : col + half]
        slices = [np.ascontiguousarray(hu[window]) for hu in slices]
    crop = body_crop(slices, pixel_mm, slices[0].shape)
    lower = slices[2 * len(slices) // 5 :]
    left, right = zip(*(trunk_columns(hu, pixel_mm[1]) for hu in lower), strict=True)
    assert crop.left <= min(left) and crop.left + crop.width >= max(right)


@pytest.mark.skipif(not REAL, reason="no real CT in ../shared/data/ct/series")
@pytest.mark.parametrize("window_hu", [(AIR_HU, 3071), (-150, 250)], ids=["hu", "8-bit"])
def test_lungs_that_a_round_field_of_view_cuts_are_no_arms(window_hu):
    """The chest wall beside them has bone, and is joined to the rest where it is thin."""
    wrong = []
    for path in REAL:
        if path.name.startswith(("lungfcp", "rider")):
            continue  # shoulders; a field of view inside of the body
        slices, pixel_mm = slices_of(path)
        row, col = (np.mgrid[: slices[0].shape[0], : slices[0].shape[1]] - slices[0].shape[0] / 2) * pixel_mm[
            0
        ]
        for hu in slices[2 * len(slices) // 5 :]:
            for x_mm, y_mm, radius_mm in ((40, 20, 170), (10, -20, 170), (-10, -20, 130), (-70, -80, 130)):
                cut = np.where(np.hypot(col - x_mm, row - y_mm) < radius_mm, hu, AIR_HU)
                whole, trunk = find_trunk([cut.clip(*window_hu)], pixel_mm, window_hu[0])
                if trunk != whole:
                    wrong.append((path.name, x_mm, whole, trunk))
    assert wrong == []


@pytest.mark.skipif(not REAL, reason="no real CT in ../shared/data/ct/series")
def test_real_shoulders_do_not_set_the_square():
    narrower = {}
    for path in REAL:
        slices, pixel_mm = slices_of(path)
        whole, _ = find_trunk(slices, pixel_mm, AIR_HU)
        crop = body_crop(slices, pixel_mm, slices[0].shape)
        gain_mm = (whole[2] - whole[0] - crop.width) * pixel_mm[1] + 12
        if gain_mm > 10:
            narrower[path.name.split(".")[0]] = gain_mm
    assert narrower.keys() == {"acrin_nsclc_fdg_pet_042", "cmb_crc_msb_01068", "lidc_idri_0314"}
    assert min(narrower.values()) > 15
