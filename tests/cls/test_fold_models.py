"""The networks in a run folder."""

import pytest

from src.cls.fold_models import find_folds, fold_folders, is_finished
from src.core.errors import UserError
from tests.helpers.cls_runs import write_network


def test_find_folds_skips_folds_that_lack_a_network(tmp_path):
    for fold in ("fold0", "fold1"):
        for target in ("liver", "spleen"):
            write_network(tmp_path / fold / target / "model.safetensors", networks=["liver", "spleen"])
    assert [len(networks) for networks in find_folds(tmp_path)] == [2, 2]
    (tmp_path / "fold1/spleen/model.safetensors").unlink()
    assert [len(networks) for networks in find_folds(tmp_path)] == [2]
    (tmp_path / "fold0/liver/model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no finished fold"):
        find_folds(tmp_path)


def test_find_folds_has_networks_of_all_patients_after_those_of_folds(tmp_path):
    for name in ("all1", "fold1", "all0", "fold0"):
        write_network(tmp_path / name / "model.safetensors")
    (tmp_path / "fold1/model.safetensors").unlink()  # not trained yet
    found = [network.parent.name for networks in find_folds(tmp_path) for network in networks]
    assert found == ["fold0", "all0", "all1"]
    assert [path.name for path in fold_folders(tmp_path)] == ["fold0", "fold1", "all0", "all1"]
    assert [is_finished(tmp_path / name) for name in ("fold0", "all0", "all2")] == [False, True, False]
