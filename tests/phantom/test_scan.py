"""The phantom's anatomy: Hounsfield units, sides and sizes, injuries plain and hard to see."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from src.core.targets import TARGETS
from src.phantom.cohort import PatientPlan, SeriesPlan
from src.phantom.options import PhantomOptions
from src.phantom.scan import generate_series

HEALTHY = dict.fromkeys(TARGETS, "healthy")


def patient(phase: str = "portal", index: int = 0, **grades: str) -> PatientPlan:
    """A patient with one series and the injuries given, such as `liver="high"`."""
    return PatientPlan(index, 1000 + index, "train", HEALTHY | grades, (SeriesPlan(7, phase, False),))


def render(plan: PatientPlan, number: int = 0, matrix: int = 128):
    return generate_series(plan, number, PhantomOptions(Path("unused"), matrix=matrix))


@pytest.mark.parametrize("phase", ["arterial", "portal"])
def test_generate_series_has_organs_of_the_right_hu_and_side(phase):
    volume = render(patient(phase, index=5))
    hu = {name: np.median(volume.hu[volume.labels == k]) for k, name in enumerate("-LSKRB") if k}
    assert 75 < hu["L"] < 125 and 105 < hu["S"] < 140 and 120 < hu["K"] < 210
    assert volume.aortic_hu > (245 if phase == "arterial" else 125)
    columns = {k: np.argwhere(volume.labels == k)[:, 2].mean() for k in (1, 2, 3, 4)}
    middle = volume.hu.shape[2] / 2
    assert columns[1] < middle < columns[2]  # the patient's left is on the image's right
    assert columns[4] < middle < columns[3]
    rows = np.argwhere(volume.labels == 3)[:, 1].mean()
    assert rows > np.argwhere(volume.labels == 5)[:, 1].mean()  # kidneys lie behind the bowel
    assert volume.hu[:, 0, 0].max() < -900  # air around the body


def test_generate_series_has_human_volumes_head_first():
    volume = render(patient(index=5))
    inside = volume.hu[:, 40:-40, 40:-40]
    assert (inside[0] < -700).mean() > 0.2 > (inside[-1] < -700).mean()
    millilitres = {
        k: (volume.labels == k).sum() * np.prod(volume.scan.spacing_mm) / 1000 for k in (1, 2, 3, 4)
    }
    assert 900 < millilitres[1] < 2500 and 100 < millilitres[2] < 500
    assert 80 < millilitres[3] < 260 and 80 < millilitres[4] < 260


def test_generate_series_flags_incomplete_organs():
    flags = set()
    for index in range(40):
        volume = render(patient(index=index), matrix=48)
        cut = np.isin(volume.labels[[0, -1]], (1, 2, 3, 4)).any()
        assert volume.incomplete_organ >= cut  # a blackened end slice may hide the cut
        flags.add(volume.incomplete_organ)
    assert flags == {True, False}


def injured_voxels(plan: PatientPlan, threshold_hu: float = 15) -> np.ndarray:
    """Change of HU (Z, Y, X) that a patient's injuries make, 0 where it is below the threshold."""
    healthy = render(dataclasses.replace(plan, grades=HEALTHY))
    change = render(plan).hu.astype(int) - healthy.hu
    return np.where(np.abs(change) > threshold_hu, change, 0)


@pytest.mark.parametrize("organ", ["liver", "spleen", "kidney"])
def test_injure_organ_by_grade(organ):
    for index in range(3):
        low = injured_voxels(patient(index=index, **{organ: "low"}))
        high = injured_voxels(patient(index=index, **{organ: "high"}))
        assert low.min() < 0 >= low.max()
        assert low.min() > -50
        assert np.count_nonzero(high) > 15 * np.count_nonzero(low) > 0
        slices = np.flatnonzero(np.count_nonzero(high, axis=(1, 2)) > 20)
        assert np.ptp(slices) * 5.0 >= 40  # mm


@pytest.mark.parametrize("phase", ["arterial", "portal"])
def test_extravasate_is_as_bright_as_the_aorta(phase):
    for index in range(3):
        volume = render(patient(phase, index=index, extravasation="injury"))
        pool = volume.injuries["Active_Extravasation"]
        assert np.percentile(volume.hu[pool], 75) > 0.95 * volume.aortic_hu
        assert np.median(volume.hu[pool]) > np.median(volume.hu[volume.labels == 1]) + 20
        assert len(volume.injured_slices["Active_Extravasation"]) * 5.0 >= 25  # mm


def test_extravasate_grows_between_phases():
    series = SeriesPlan(1, "arterial", False), SeriesPlan(2, "portal", False)
    plan = dataclasses.replace(patient(index=4, extravasation="injury"), series=series)
    volumes, centres = [], []
    for number in (0, 1):
        volume = render(plan, number)
        where = np.argwhere(volume.injuries["Active_Extravasation"])
        volumes.append(len(where) * np.prod(volume.scan.spacing_mm))
        z, y, x = where.mean(axis=0) * volume.scan.spacing_mm
        first = volume.scan.first_voxel_mm
        across = volume.scan.to_patient(np.array(first[0] + x), np.array(first[1] + y))
        centres.append((*across, first[2] - z))
    assert volumes[1] > 1.3 * volumes[0]
    np.testing.assert_allclose(centres[0], centres[1], atol=5)


def test_perforate_bowel_shows_gas_in_front_and_fluid():
    for index in range(3):
        plan = patient(index=index, bowel="injury")
        change, volume = injured_voxels(plan), render(plan)
        gas = (change < -300) & (volume.hu < -700)
        fluid = (change > 60) & (np.abs(volume.hu) < 80)
        assert gas.sum() > 40 and fluid.sum() > 200
        assert np.argwhere(gas)[:, 1].mean() < np.argwhere(fluid)[:, 1].mean()
        assert np.ptp(volume.injured_slices["Bowel"]) * 5.0 >= 40  # mm
