"""The phantom on disk: the competition's layout, true DICOM with its quirks, the same bytes every time."""

import dataclasses
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import LABEL_COLUMNS
from src.data.labels import read_image_level_labels, read_labels, read_series_meta
from src.phantom.__main__ import main
from src.phantom.cohort import plan_cohort
from src.phantom.generate import generate_dataset
from src.phantom.options import PhantomOptions
from src.phantom.scan import generate_series
from tests.helpers.folders import files_of
from tests.helpers.phantom_files import restore_volume

REAL_TABLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "rsna2023"
SMALL = {"matrix": 64, "spacing_z_mm": 12.0, "seed": 3}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> PhantomOptions:
    """A small data set on disk: 8 training and 3 test patients, half with two series and a segmentation."""
    folder = tmp_path_factory.mktemp("phantom") / "raw"
    options = PhantomOptions(
        folder, patients=8, test_patients=3, two_phase_rate=0.5, segmentation_rate=0.5, jobs=1, **SMALL
    )
    generate_dataset(options)
    return options


def series_of(options: PhantomOptions):
    """(plan, number, folder) of every series of a data set."""
    for plan in plan_cohort(options):
        for number, series in enumerate(plan.series):
            split = options.output / f"{plan.split}_images"
            yield plan, number, split / str(plan.patient_id) / str(series.series_id)


@pytest.mark.parametrize(("split", "table"), [("train", "train.csv"), ("test", "test_labels.csv")])
def test_write_tables_lists_every_patient_and_series(phantom, split, table):
    images = phantom.output / f"{split}_images"
    labels = read_labels(phantom.output / table)  # checks one class a target, and any_injury
    assert set(labels.patient_id) == {path.name for path in images.iterdir()}
    meta = read_series_meta(phantom.output / f"{split}_series_meta.csv")
    assert set(meta.series_id) == {path.name for path in images.glob("*/*")}
    assert ("incomplete_organ" in meta) == (split == "train")
    assert meta.aortic_hu.between(100, 450).all()


def test_write_tables_marks_slices_of_injured_patients(phantom):
    marks = read_image_level_labels(phantom.output / "image_level_labels.csv")
    labels = read_labels(phantom.output / "train.csv").set_index("patient_id")
    for mark in marks.itertuples():
        folder = phantom.output / "train_images" / mark.patient_id / mark.series_id
        assert (folder / f"{mark.instance_number}.dcm").is_file()
    for name, column in (("Active_Extravasation", "extravasation_injury"), ("Bowel", "bowel_injury")):
        assert set(marks.patient_id[marks.injury_name == name]) == set(labels.index[labels[column] == 1])


@pytest.mark.skipif(not REAL_TABLES.is_dir(), reason="the competition's own tables are not at hand")
@pytest.mark.parametrize(
    "name",
    ["train", "train_series_meta", "test_series_meta", "image_level_labels", "sample_submission"],
)
def test_write_tables_has_the_columns_and_types_of_the_competition(phantom, name):
    ours, real = (pd.read_csv(folder / f"{name}.csv") for folder in (phantom.output, REAL_TABLES))
    assert list(ours.columns) == list(real.columns)
    assert ours.dtypes.equals(real.dtypes)


def test_write_segmentation_lies_on_the_organs(phantom):
    placed = 0
    for plan, number, folder in series_of(phantom):
        path = phantom.output / "segmentations" / f"{folder.name}.nii"
        assert path.exists() == plan.series[number].segmented
        if not path.exists():
            continue
        volume = generate_series(plan, number, phantom)
        image = nibabel.load(path)
        mask = np.asarray(image.dataobj)
        voxels = np.argwhere(mask > 0)
        x, y, z = (nibabel.affines.apply_affine(image.affine, voxels) * (-1, -1, 1)).T  # RAS to LPS
        first, (dz, dy, dx) = volume.scan.first_voxel_mm, volume.scan.spacing_mm
        at = (first[2] - z) / dz, (y - first[1]) / dy, (x - first[0]) / dx
        at = tuple(np.rint(axis).astype(int) for axis in at)
        np.testing.assert_array_equal(volume.labels[at], mask[tuple(voxels.T)])
        liver = mask[tuple(voxels.T)] == 1
        assert 60 < restore_volume(folder)[at][liver].mean() < 130
        assert mask.shape != volume.labels.shape or not np.array_equal(mask, volume.labels)
        placed += 1
    assert placed == round(0.5 * len(list((phantom.output / "train_images").glob("*/*"))))


def test_generate_dataset_depends_on_the_seed_not_on_jobs(phantom, tmp_path):
    again = dataclasses.replace(phantom, output=tmp_path / "again", jobs=2)
    generate_dataset(again)
    assert files_of(again.output) == files_of(phantom.output)
    other = dataclasses.replace(phantom, output=tmp_path / "other", seed=4, patients=1, test_patients=0)
    generate_dataset(other)
    assert not set(files_of(other.output).values()) & set(files_of(phantom.output).values())


def test_generate_dataset_completes_an_interrupted_run(phantom, tmp_path):
    broken = dataclasses.replace(phantom, output=tmp_path / "broken")
    shutil.copytree(phantom.output, broken.output)
    first, last = next((broken.output / "train_images").glob("*/*")), broken.output / "sample_submission.csv"
    shutil.rmtree(first)
    (broken.output / ".partial" / first.name).mkdir(parents=True)
    last.unlink()
    generate_dataset(broken)
    assert files_of(broken.output) == files_of(phantom.output)


def test_generate_dataset_refuses_a_folder_of_something_else(phantom, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    arguments = ["--output", str(tmp_path), "--patients", "1"]
    with pytest.raises(UserError, match="something other than a phantom"):
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="made with --patients 8, not 9"):
        generate_dataset(dataclasses.replace(phantom, patients=9))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--patients", "0"), ("--matrix", "7"), ("--bowel-rate", "1.5"), ("--spacing-z-mm", "0")],
)
def test_main_refuses_impossible_options(tmp_path, option, value):
    with pytest.raises(UserError, match=option.strip("-").split("-")[0]):
        main(["--output", str(tmp_path / "new"), option, value])


def test_plan_cohort_follows_the_rates():
    labels = {}
    for patients, rate in ((40, 0.2), (20, 0.01)):
        options = PhantomOptions(
            Path("unused"),
            patients=patients,
            bowel_rate=rate,
            extravasation_rate=rate,
            liver_rates=(rate, rate),
            two_phase_rate=0.35,
        )
        plans = [plan for plan in plan_cohort(options) if plan.split == "train"]
        labels[patients] = pd.DataFrame([plan.labels() for plan in plans])[list(LABEL_COLUMNS)].sum()
        assert sum(len(plan.series) == 2 for plan in plans) == round(0.35 * patients)
    for column in ("bowel_injury", "extravasation_injury", "liver_low", "liver_high"):
        assert labels[40][column] == 8 and labels[20][column] == 1
    assert labels[40]["kidney_low"] == labels[40]["spleen_high"] == 4
