"""prepare_data.py from its command line: tables, resuming, refusals, crashes survived."""

import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import prepare_data
from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.data.png import read_png
from src.data.prepared import PreparedDataset
from tests.helpers.dicom_files import write_series
from tests.helpers.folders import files_of


@pytest.fixture
def raw(tmp_path):
    """Three good series of two patients, one coronal series, one that holds junk."""
    images = tmp_path / "raw" / "train_images"
    for name in ("10/100", "10/101", "9/90"):
        write_series(images / name, n_slices=6)
    write_series(images / "9" / "91", n_slices=3, along_rows=(0, 0, -1))
    (images / "9" / "92").mkdir()
    (images / "9" / "92" / "1.dcm").write_bytes(b"junk")
    (images / "9" / "90" / "77.dcm").write_bytes(b"")
    return tmp_path / "raw"


def run(raw, output, *arguments):
    arguments = [str(argument) for argument in ("--input", raw, "--output", output, "--size", 32, *arguments)]
    prepare_data.main([*arguments, "--jobs", "1"])
    return PreparedDataset.open(output)


def test_prepare_data_lists_every_series(raw, tmp_path, capsys):
    dataset = run(raw, tmp_path / "out")
    pairs = list(zip(dataset.all_series["patient_id"], dataset.all_series["series_id"], strict=True))
    assert pairs == [("10", "100"), ("10", "101"), ("9", "90"), ("9", "91"), ("9", "92")]
    assert dataset.all_series["status"].tolist() == ["ok", "ok", "ok", "skipped", "skipped"]
    assert dataset.all_series["reason"].tolist()[3] == "not axial"
    assert dataset.series["slices"].tolist() == [6, 6, 6]
    assert dataset.series["spacing_z_mm"].tolist() == [5, 5, 5]
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv", dtype=str)
    assert rejected[["patient_id", "series_id", "source"]].values.tolist() == [["9", "90", "77.dcm"]]
    assert "not axial" in capsys.readouterr().out
    stack = dataset.read_slices("9", "90", [0, 5, 5])
    assert stack.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(stack[1], stack[2])
    assert dataset.read_slice_table("9", "90")["z_mm"].is_monotonic_decreasing
    assert not dataset.has_masks("9", "90")


def test_prepare_data_counts_doubtful_series_by_reason_and_warns(raw, tmp_path, capsys):
    run(raw, tmp_path / "out")
    out, err = capsys.readouterr()
    assert "doubtful" in out and "doubtful because" not in out and "doubtful" not in err
    record = tmp_path / "out" / "images" / "10" / "101" / "series.json"
    found = json.loads(record.read_text())
    found["row"] |= {"status": "doubtful", "reason": "slope 32 HU"}
    record.write_text(json.dumps(found))
    capsys.readouterr()
    dataset = run(raw, tmp_path / "out")
    assert dataset.all_series["status"].tolist() == ["ok", "doubtful", "ok", "skipped", "skipped"]
    out, err = capsys.readouterr()
    totals, reasons = out.split("\n\n")[1:3]
    names, values = (line.split() for line in totals.replace("of an earlier run", "earlier").splitlines())
    assert dict(zip(names, values, strict=False))["doubtful"] == "1"
    assert reasons.splitlines()[1].split(maxsplit=1) == ["1", "slope 32 HU"]
    assert "1 of 3 series are doubtful" in err and "--doubtful keep" in err and "series.csv" in err


def test_prepare_data_accepts_a_source_whose_series_are_all_doubtful(tmp_path):
    write_series(tmp_path / "raw" / "train_images" / "1" / "2", n_slices=4)
    for path in run(tmp_path / "raw", tmp_path / "out").folder.glob("images/*/*/series.json"):
        path.write_text(path.read_text().replace('"status": "ok"', '"status": "doubtful"'))
    assert run(tmp_path / "raw", tmp_path / "out").series["status"].tolist() == ["doubtful"]


def test_prepare_data_adds_a_second_input(raw, tmp_path):
    run(raw, tmp_path / "out")
    write_series(tmp_path / "more" / "train_images" / "5" / "50", n_slices=4)
    together = run(tmp_path / "more", tmp_path / "out")
    assert set(together.series.series_id) == {"50", "90", "100", "101"}


def test_prepare_data_is_the_same_with_two_jobs(raw, tmp_path):
    one = run(raw, tmp_path / "one").folder
    prepare_data.main(["--input", str(raw), "--output", str(tmp_path / "two"), "--size", "32", "--jobs", "2"])
    assert files_of(tmp_path / "two") == files_of(one)


def test_prepare_data_refuses_other_options_without_overwrite(raw, tmp_path):
    run(raw, tmp_path / "out")
    with pytest.raises(UserError, match=r"made with another windows.*--overwrite"):
        run(raw, tmp_path / "out", "--windows", "soft")
    dataset = run(raw, tmp_path / "out", "--windows", "soft", "--overwrite")
    assert dataset.read_slices("9", "90", [0]).shape[-1] == 1


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_prepare_data_resumes_without_dataset_json(raw, tmp_path, monkeypatch, options):
    expected = files_of(run(raw, tmp_path / "undisturbed").folder)
    if options:
        run(raw, tmp_path / "out")

    def killed(_, path):
        (path.parent / ".dataset-x1y2.json").write_text("")  # as atomic_path begins
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("src.core.run_folder.write_json", killed)
        run(raw, tmp_path / "out", *options)
    assert files_of(run(raw, tmp_path / "out").folder) == expected


def test_prepare_data_refuses_a_folder_of_something_else(raw, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(UserError, match="something other than a prepared data set"):
        run(raw, tmp_path / "thesis", "--overwrite")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_prepare_data_with_preview(raw, tmp_path):
    dataset = run(raw, tmp_path / "out", "--preview")
    preview = dataset.folder / "preview"
    previews = sorted(path.relative_to(preview).as_posix() for path in preview.rglob("*.png"))
    assert previews == ["10/100.png", "10/101.png", "9/90.png"]
    assert read_png(preview / "9" / "90.png").max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input hollow", "no series in"),
        ("--input raw --split test", "no test_images"),
        ("--input raw --windows soft soft", "--windows takes one to three different windows"),
        ("--input raw --size 4", "--size"),
    ],
)
def test_prepare_data_refuses_a_mistake_and_writes_nothing(raw, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("hollow", "test_images").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        prepare_data.main(["--output", "out", *arguments.split()])
    assert not Path("out").exists()


def test_prepare_data_is_the_same_for_a_zip(raw, tmp_path):
    with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in raw.rglob("*.dcm"):
            archive.write(path, path.relative_to(raw))
    folder = run(raw, tmp_path / "folder", "--preview")
    archive = run(tmp_path / "raw.zip", tmp_path / "zip", "--preview")
    assert files_of(archive.folder) == files_of(folder.folder)


def test_prepare_data_prepares_a_changed_series_again(raw, tmp_path):
    run(raw, tmp_path / "out")
    volume = nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), np.diag([100.0, 100.0, 100.0, 1.0]))
    (raw / "segmentations").mkdir()
    nib.save(volume, raw / "segmentations" / "90.nii")
    (raw / "train_images" / "10" / "100" / "6.dcm").unlink()
    dataset = run(raw, tmp_path / "out")
    assert dataset.series.set_index("series_id")["slices"].to_dict() == {"100": 5, "101": 6, "90": 6}
    assert set(np.unique(dataset.read_masks("9", "90", range(6)))) == {0, 1}
    (tmp_path / "ids.yaml").write_text("spleen: 1\n")
    dataset = run(raw, tmp_path / "out", "--mask-ids", tmp_path / "ids.yaml")
    assert set(np.unique(dataset.read_masks("9", "90", range(6)))) == {0, 2}


@pytest.mark.parametrize(
    ("policy", "expected"), [(("--count", 3), [1, 3, 5]), (("--spacing-z-mm", 9), [0, 2, 4]), ((), range(6))]
)
def test_prepare_data_selects_slices(raw, tmp_path, policy, expected):
    dataset = run(raw, tmp_path / "out", *policy)
    every = run(raw, tmp_path / "all")
    table, whole = (found.read_slice_table("9", "90") for found in (dataset, every))
    assert table["source"].tolist() == whole["source"].iloc[list(expected)].tolist()
    np.testing.assert_array_equal(
        dataset.read_slices("9", "90", range(len(table))), every.read_slices("9", "90", list(expected))
    )


def test_prepare_data_restores_missing_images(raw, tmp_path):
    whole = files_of(run(raw, tmp_path / "out").folder)
    images = tmp_path / "out" / "images"
    stamp = (images / "10" / "101" / "0000.png").stat().st_mtime_ns
    (images / "9" / "90" / "0003.png").unlink()
    (images / "10" / "100" / "series.json").write_text("")
    (images / "10" / ".101.partial").mkdir()  # as a killed run leaves it
    (tmp_path / "out" / "series.csv").unlink()
    assert files_of(run(raw, tmp_path / "out").folder) == whole
    assert (images / "10" / "101" / "0000.png").stat().st_mtime_ns == stamp  # a finished series is kept


def test_prepare_data_refuses_an_output_in_use(raw, tmp_path):
    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"), pytest.raises(UserError, match="another run is writing"):
        run(raw, tmp_path / "out")
    run(raw, tmp_path / "out")


def test_prepare_data_refuses_an_input_inside_the_output(raw, tmp_path):
    with pytest.raises(UserError, match="lies in --output"):
        run(raw, tmp_path, "--overwrite")
    assert (raw / "train_images" / "9" / "90" / "1.dcm").exists()


def test_prepare_data_fails_if_no_series_can_be_prepared(raw, tmp_path):
    for name in ("10", "9/90"):
        shutil.rmtree(raw / "train_images" / name)
    with pytest.raises(UserError, match=r"none of 2 series.*not axial"):
        run(raw, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "series.csv", dtype=str)
    assert table[["series_id", "status"]].values.tolist() == [["91", "skipped"], ["92", "skipped"]]


def test_prepare_data_does_not_take_a_ct_for_its_segmentation(tmp_path, capsys):
    hu = np.full((20, 20, 6), -1000, dtype=np.int16)
    hu[5:15, 5:15] = 3
    for folder in ("ct", "masks"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(hu, np.diag([10.0, 10, 5, 1])), tmp_path / folder / "1.nii")
    table = tmp_path / "ids.yaml"
    table.write_text("liver: 3\n")
    with pytest.raises(UserError, match="need a folder of their own"):
        run(tmp_path / "ct" / "1.nii", tmp_path / "out", "--masks", tmp_path / "ct", "--mask-ids", table)
    dataset = run(tmp_path / "ct", tmp_path / "out", "--masks", tmp_path / "masks", "--mask-ids", table)
    assert not dataset.has_masks("1", "1")
    assert "no label map" in dataset.series.loc[0, "reason"]
