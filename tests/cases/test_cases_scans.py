"""Reported cases of several scans under one series UID, wrong positions, and a square that arms enlarge."""

import numpy as np
import pytest

from tests.helpers.dicom_files import write_series
from tests.helpers.folders import files_of
from tests.helpers.prepare_runs import prepare_input
from tests.helpers.scans import write_scan


def only_row(dataset):
    (row,) = dataset.all_series.fillna("").to_dict("records")
    return row


def test_case_01_chest_and_abdomen_that_overlap_are_one_scan(tmp_path):
    """100 and 80 slices that share 25 heights."""
    for z_mm, number, tags in (
        (range(400, -100, -5), 1, {"AcquisitionNumber": 1, "AcquisitionTime": "101500"}),
        (range(25, -375, -5), 101, {"AcquisitionNumber": 2, "AcquisitionTime": "101630"}),
    ):
        write_scan(tmp_path / "ct", z_mm, range(number, number + len(z_mm)), **tags)
    dataset = prepare_input(tmp_path / "ct", tmp_path / "out")
    row = only_row(dataset)
    assert (row["slices"], row["status"]) == (155, "ok")
    assert "25 slices of another acquisition of the same region left out" in row["reason"]
    table = dataset.slices(row["patient_id"], row["series_id"])
    assert table["z_mm"].tolist() == list(range(400, -375, -5))
    assert table["instance_number"].tolist() == [*range(1, 101), *range(126, 181)]
