"""The networks in a run folder."""

import pytest

from src.cls.fold_models import find_folds
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
