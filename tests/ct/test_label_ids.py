"""Tables that give the ids of label maps a meaning."""

from pathlib import Path

import pytest

from src.core.errors import UserError
from src.core.targets import ORGANS
from src.ct.label_ids import read_mask_ids


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
