"""Where the stacks of a series come from."""

import pytest

from src.ct.storage import LocalTree, UnreachableTree
from src.infer import stack_sources
from src.infer.stack_sources import RawSource, open_source


def test_raw_source_finds_test_images_in_a_folder_around_them(tiny, tmp_path):
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "raw").symlink_to(tiny.raw.absolute())
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    series = RawSource(tiny.raw, []).series_of(patient_id)
    assert series and RawSource(tmp_path / "around", []).series_of(patient_id) == series


@pytest.mark.parametrize(("times", "is_read"), [(2, True), (9, False)])
def test_open_source_lists_folders_again(tiny, monkeypatch, capsys, times, is_read):
    calls = []

    def away_at_first(self, folder):
        calls.append(folder)
        if len(calls) <= times:
            raise UnreachableTree(f"cannot read the folder {folder}: Input/output error")
        return list_folder(self, folder)

    list_folder = LocalTree.list_folder
    monkeypatch.setattr(LocalTree, "list_folder", away_at_first)
    monkeypatch.setattr(stack_sources, "PAUSES_S", (0.0, 0.0))
    if is_read:
        assert isinstance(open_source(tiny.raw, []), RawSource)
    else:
        with pytest.raises(UnreachableTree):
            open_source(tiny.raw, [])
    assert capsys.readouterr().err.count("trying again") == 2
