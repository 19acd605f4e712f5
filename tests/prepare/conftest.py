"""A disk of DICOM files as hospitals hand it out."""

import pytest

from tests.helpers.source_trees import hospital_disk


@pytest.fixture
def hospital(tmp_path):
    return hospital_disk(tmp_path / "disk")
