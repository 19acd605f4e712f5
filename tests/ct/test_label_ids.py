"""Tables and names that give the ids of label maps a meaning."""

import json
from pathlib import Path

import pytest

from src.core.errors import UserError
from src.core.targets import ORGANS
from src.ct.label_ids import labels_of_names, read_dataset_ids, read_mask_ids


def table(tmp_path, text):
    path = tmp_path / "ids.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("heart: 5", "unknown organ 'heart'"),
        ("liver: five", "whole numbers above 0, got 'five'"),
        ("liver: 0", "whole numbers above 0, got 0"),
        ("liver: true", "whole numbers above 0, got True"),
        ("liver: 1\nspleen: [2, 1]", "two organs have the id 1"),
        ("- 5", "must hold lines"),
        ("", "must hold lines"),
        ("liver: []", "names no id"),
        ("liver: [", "cannot be read as YAML"),
    ],
)
def test_read_mask_ids_reports_a_mistake_in_one_line(tmp_path, text, reason):
    with pytest.raises(UserError, match=reason):
        read_mask_ids(table(tmp_path, text))


def test_read_mask_ids_of_a_missing_table_names_the_folder_of_tables(tmp_path):
    with pytest.raises(UserError, match=r"no table .*there are some in .*masks"):
        read_mask_ids(tmp_path / "none.yaml")


def test_read_mask_ids_of_the_shipped_tables(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found from any working directory
    tables = {name: read_mask_ids(Path(f"configs/masks/{name}.yaml")) for name in ("rsna", "flare23")}
    total = read_mask_ids(Path("configs/masks/totalsegmentator.yaml"))
    assert tables["rsna"] == {label: label for label in ORGANS.values()}
    assert total == {5: 1, 1: 2, 3: 3, 2: 4, 18: 5, 19: 5, 20: 5}
    assert tables["flare23"] == {1: 1, 3: 2, 13: 3, 2: 4}


def dataset_json(tmp_path, content):
    """A folder of labels beside a dataset.json with this content."""
    (tmp_path / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / "labelsTr"


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        ({"background": 0, "spleen": 1, "left_kidney": 3, "Liver": 6, "aorta": 8}, {1: 2, 3: 3, 6: 1}),
        ({"0": "background", "1": "spleen", "3": "left kidney", "13": "duodenum"}, {1: 2, 3: 3}),
        ({"small bowel": 1, "colon": 2, "duodenum": 3}, {1: 5, 2: 5, 3: 5}),
        ({"background": 0, "liver": [1, 2], "left kidney": None, "spleen": 3}, {3: 2}),
    ],
)
def test_read_dataset_ids_takes_the_organs_that_are_named(tmp_path, labels, ids):
    assert read_dataset_ids(dataset_json(tmp_path, {"labels": labels})) == ids


def test_read_dataset_ids_refuses_labels_of_no_organ(tmp_path):
    masks = dataset_json(tmp_path, {"labels": {"background": 0, "tumour": 1}})
    with pytest.raises(
        UserError, match=r"dataset\.json names none of liver, .*: name a table with --mask-ids"
    ):
        read_dataset_ids(masks)


@pytest.mark.parametrize("content", ["{", [], {"version": 3}, {"labels": [1]}])
def test_read_dataset_ids_ignores_files_of_other_programs(tmp_path, content):
    assert read_dataset_ids(tmp_path / "labelsTr") is None
    assert read_dataset_ids(dataset_json(tmp_path, content)) is None


def test_labels_of_names_needs_the_whole_bowel():
    assert labels_of_names(["kidney_left", "colon", "duodenum", "heart"]) == {"kidney_left": 3}
    parts = ["small_bowel", "colon", "duodenum"]
    assert labels_of_names(parts) == dict.fromkeys(parts, ORGANS["bowel"])
