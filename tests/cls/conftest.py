"""A prepared data set with masks in every second series, and a run of the first level."""

import pandas as pd
import pytest

from src.cls.organs import OrganIndex
from src.core.targets import LABEL_COLUMNS
from src.data.prepared import PreparedDataset
from tests.helpers.infer_runs import train_small
from tests.helpers.seg_files import series_ids, write_masked


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A prepared set of 12 slices per series, organs in slices 3 to 8 of every second one."""
    dataset = PreparedDataset.open(write_masked(tmp_path_factory.mktemp("stacks") / "set"))
    for ids in series_ids(dataset)[::2]:
        masks = [dataset.read_masks(*ids, [0])[0] * (3 <= index < 9) for index in range(12)]
        dataset.write_masks(*ids, masks)
    return dataset


@pytest.fixture(scope="module")
def organs(masked):
    return OrganIndex.read(masked)


@pytest.fixture
def labels(masked):
    """All patients have every injury but the first, who has none."""
    patients = masked.series.patient_id.unique()
    table = pd.DataFrame(1, index=patients, columns=list(LABEL_COLUMNS))
    table.iloc[0] = 0
    return table


@pytest.fixture(scope="session")
def first(tiny, tmp_path_factory):
    """A first-level run of both folds; tests do not write into it."""
    return train_small(tiny, tmp_path_factory.mktemp("first") / "run", "--tta none h")
