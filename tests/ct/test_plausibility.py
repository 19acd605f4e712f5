"""Contradictions are mended, doubted or refused; harmless variations and real series are not."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from src.ct.series import SeriesError
from src.ct.windows import get_windows
from src.data.prepared import image_folder
from src.prepare.sources import find_sources
from src.prepare.write_series import PrepareJob, prepare_series
from tests.helpers.contradictions import CONTRADICTIONS
from tests.helpers.harmless_variations import HARMLESS
from tests.helpers.phantom_ct import N_PATIENTS, phantom_ct, write_ct
from tests.helpers.prepare_runs import NAMES, read_stack

DRAWS = 14  # of each of 15 kinds
REAL_CT = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct"


class Outcome(NamedTuple):
    status: str
    reason: str
    images: np.ndarray | None = None
    files: list[str] | None = None


def prepare_all(folder: Path, output: Path) -> list[Outcome]:
    return [prepare_one(source, output) for source in find_sources(folder).series]


def prepare_one(source, output: Path) -> Outcome:
    try:
        row = prepare_series(source, PrepareJob(output, get_windows(NAMES), 48))["row"]
    except SeriesError as error:
        return Outcome("skipped", str(error))
    folder = image_folder(output, source.patient_id, source.series_id)
    files = pd.read_csv(folder / "slices.csv")["source"].tolist()
    return Outcome(row["status"], row["reason"], read_stack(folder), files)


def drawn(kinds, name: str, draw: int, folder: Path):
    """Write a draw of a kind; return the true CT, and what becomes of the files."""
    rng = np.random.default_rng([draw, *name.encode()])
    ct = phantom_ct(int(rng.integers(N_PATIENTS)))
    kinds[name].write(folder / "drawn", ct, rng)
    (outcome,) = prepare_all(folder / "drawn", folder / "drawn_out")
    return ct, outcome


def true_images(ct, folder: Path, files: list[str] | None = None) -> np.ndarray:
    """Images of the CT as it is, of these files alone."""
    write_ct(folder / "true", ct)
    for path in (folder / "true").iterdir():
        if files is not None and path.name not in files:
            path.unlink()
    (outcome,) = prepare_all(folder / "true", folder / "true_out")
    assert (outcome.status, files is None or outcome.files == files) == ("ok", True)
    return outcome.images


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_no_contradiction_is_ok_and_wrong(name, draw, tmp_path):
    ct, outcome = drawn(CONTRADICTIONS, name, draw, tmp_path)
    if outcome.status == "ok":  # then mended: right pixels, in the right order
        assert np.array_equal(outcome.images, true_images(ct, tmp_path, outcome.files))
    else:
        assert outcome.status in ("doubtful", "skipped")
        assert any(cause in outcome.reason for cause in CONTRADICTIONS[name].causes), outcome.reason


@pytest.mark.parametrize("draw", range(DRAWS))
@pytest.mark.parametrize("name", HARMLESS)
def test_no_harmless_variation_is_doubted(name, draw, tmp_path):
    ct, outcome = drawn(HARMLESS, name, draw, tmp_path)
    assert outcome.status == "ok", outcome.reason
    if HARMLESS[name].same_images:
        difference = outcome.images.astype(int) - true_images(ct, tmp_path)
        assert np.abs(difference).max() <= 1  # fractions of HU are rounded later


@pytest.mark.skipif(not REAL_CT.is_dir(), reason=f"no {REAL_CT}")
@pytest.mark.parametrize("folder", ["series", "chaos/dicom", "totalsegmentator/example_ct.nii.gz"])
def test_no_real_series_is_doubted(folder, tmp_path):
    outcomes = prepare_all(REAL_CT / folder, tmp_path)
    assert outcomes and all(outcome.status == "ok" for outcome in outcomes), outcomes
    if folder == "series":
        assert len(outcomes) == 12
