"""The rehearsal of README's recipe: which commands it runs, on which series, and what it measures."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from rehearsal import DATA, TABLES, place_series, read_recipe, run_command
from study import make_phantom

from src.core.errors import UserError


@pytest.fixture
def tables(tmp_path):
    """Tables of three patients, the second of whom has two series, as the competition has them."""
    folder = tmp_path / "tables"
    folder.mkdir()
    series = pd.DataFrame({"patient_id": ["10", "20", "20", "30"], "series_id": ["1", "2", "3", "4"]})
    marks = series.iloc[[1]].assign(instance_number=1000, injury_name="Bowel")
    contents = {"train_series_meta": series, "image_level_labels": marks}
    contents["train"] = pd.DataFrame({"patient_id": ["10", "20", "30"]})
    contents["sample_submission"] = pd.DataFrame({"patient_id": ["7"]})
    contents["test_series_meta"] = pd.DataFrame({"patient_id": ["7"], "series_id": ["8"]})
    for name, table in contents.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_read_recipe_has_every_script_from_preparation_to_submission():
    commands = read_recipe()
    programs = [command.split()[2 if "-m" in command.split() else 1] for command in commands]
    expected = [
        "prepare_data.py",
        "train_seg.py",
        "segment.py",
        "train_voco.py",
        "train_cls.py",
        "train_cls.py",
    ]
    assert programs == [*expected, "src.cls.second_level", "score.py", "infer.py"]


def test_place_series_links_phantoms_to_the_ids_of_the_tables(tmp_path, tables):
    work = tmp_path / "work"
    small = "--patients 2 --test-patients 0 --matrix 64 --spacing-z-mm 20 --segmentation-rate 1 --seed 1"
    make_phantom(work / "phantom", small)
    place_series(work, tables, patients=2)
    images = work / DATA / "train_images"
    assert sorted(path.relative_to(images).as_posix() for path in images.glob("*/*")) == [
        "10/1",
        "20/2",
        "20/3",
    ]
    files = sorted((images / "20" / "2").iterdir())
    assert files and all(path.is_file() for path in files)
    marked = pd.read_csv(work / TABLES / "image_level_labels.csv").instance_number
    assert marked.between(1, len(files)).all()
    assert len(list((work / DATA / "segmentations").glob("*.nii"))) == 1  # a third
    assert (work / DATA / "test_images" / "7" / "0").is_dir()
    place_series(work, tables, patients=2)  # links stay


def test_place_series_names_a_missing_table(tmp_path):
    with pytest.raises(UserError, match=r"--tables .*: .*train\.csv"):
        place_series(tmp_path / "work", tmp_path)


def test_run_command_measures_memory_and_status(tmp_path):
    (tmp_path / "wanted.py").write_text(
        "import time; held = bytearray(200_000_000); time.sleep(1); raise SystemExit(3)"
    )
    row = run_command(["python", "wanted.py"], tmp_path)
    assert row["status"] == 3 and row["peak GB"] > 0.2 and row["minutes"] > 0
    assert "$ python wanted.py" in (tmp_path / "log.txt").read_text()
