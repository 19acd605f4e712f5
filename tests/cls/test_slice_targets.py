"""Targets of single slices, from organ areas and image-level labels."""

import numpy as np
import pandas as pd
import pytest

from src.cls.slice_targets import SliceTargets, read_marked_slices
from src.core.errors import UserError
from src.core.targets import INJURIES
from tests.helpers.seg_files import series_ids


def test_look_up_gives_the_share_of_the_organ_area(masked, organs, labels):
    targets = SliceTargets(labels, organs, {})
    healthy, unknown, key = series_ids(masked)[0], series_ids(masked)[1], series_ids(masked)[2]
    assert not targets.look_up(healthy, np.arange(12)[:, None]).any()
    shown = targets.look_up(key, np.arange(12)[:, None])
    for column, injury in enumerate(INJURIES):
        if injury == "extravasation_injury":
            assert np.isnan(shown[:, column]).all()
        else:
            assert shown[:, column].tolist() == [float(3 <= index < 9) for index in range(12)]
    assert np.isnan(targets.look_up(unknown, np.arange(12)[:, None])).all()


def test_look_up_prefers_marked_slices_to_areas(masked, organs, labels, tmp_path):
    key, other = series_ids(masked)[2], series_ids(masked)[4]
    numbers = masked.read_slice_table(*key).instance_number
    rows = [
        {"injury_name": "Active_Extravasation", "instance_number": numbers[7]},
        {"injury_name": "Active_Extravasation", "instance_number": numbers[8]},
        {"injury_name": "Bowel", "instance_number": numbers[2]},
    ]
    table = pd.DataFrame(rows).assign(patient_id=key[0], series_id=key[1])
    table.to_csv(tmp_path / "marks.csv", index=False)
    marked = read_marked_slices(tmp_path / "marks.csv", masked)
    shown = SliceTargets(labels, organs, marked).look_up(key, np.arange(12)[:, None])
    assert np.flatnonzero(shown[:, INJURIES.index("extravasation_injury")]).tolist() == [7, 8]
    assert np.flatnonzero(shown[:, INJURIES.index("bowel_injury")]).tolist() == [2]
    assert np.isnan(SliceTargets(labels, organs, marked).look_up(other, np.arange(12)[:, None])[:, 1]).all()
    with_neighbours = np.clip(np.arange(12)[:, None] + [-1, 0, 1], 0, 11)
    shown = SliceTargets(labels, organs, marked).look_up(key, with_neighbours)
    assert np.flatnonzero(shown[:, INJURIES.index("extravasation_injury")]).tolist() == [6, 7, 8, 9]
    assert np.flatnonzero(shown[:, INJURIES.index("bowel_injury")]).tolist() == [1, 2, 3]
    table.assign(series_id="nowhere").to_csv(tmp_path / "others.csv", index=False)
    with pytest.raises(UserError, match="marks no slice of a series"):
        read_marked_slices(tmp_path / "others.csv", masked)


def test_read_marked_slices_counts_marks_of_slices_that_were_not_prepared(masked, tmp_path, capsys):
    row = masked.series.iloc[0]
    known = masked.read_slice_table(row.patient_id, row.series_id).instance_number
    marks = pd.DataFrame(
        {
            "patient_id": row.patient_id,
            "series_id": row.series_id,
            "instance_number": [int(known[0]), int(known.max()) + 1],
            "injury_name": "Bowel",
        }
    )
    marks.to_csv(tmp_path / "marks.csv", index=False)
    found = read_marked_slices(tmp_path / "marks.csv", masked)
    assert found[row.patient_id, row.series_id]["bowel_injury"].tolist() == [0]
    assert "1 of the 2 marks of" in capsys.readouterr().err
