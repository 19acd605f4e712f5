"""Damaged files of every kind in every transfer syntax: nothing crashes, hangs, or is lost unreported.

`make fuzz` runs the whole matrix, `make test` a sample of it.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.ct.windows import WINDOWS
from src.data.prepared import USABLE
from src.prepare.run import PreparedRun, prepare_all
from src.prepare.sources import find_sources
from src.prepare.write_series import PrepareJob
from tests.helpers.dicom_files import PIXEL_MM, SIDE, SPACING_Z_MM, hu_at
from tests.helpers.dicom_mutations import mutations
from tests.helpers.dicom_syntaxes import SYNTAXES, can_write, write_encoded

FILES = ("1.dcm", "2.dcm", "3.dcm", "4.dcm")
DAMAGED = "2.dcm"
SAMPLE = 11


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """A folder of four good slices for each syntax; JPEG baseline holds grey levels of the soft window."""
    folder = tmp_path_factory.mktemp("whole")
    row, col = np.mgrid[:SIDE, :SIDE] * PIXEL_MM - SIDE / 2 * PIXEL_MM
    for name, syntax in SYNTAXES.items():
        bits = next(bits for bits in (16, 12, 8) if can_write(syntax, bits, signed=False))
        for index, file in enumerate(FILES):
            hu = hu_at(col, row, np.array(SPACING_Z_MM * index))
            stored = WINDOWS["soft"].grey(hu) if bits == 8 else hu + 1024
            (folder / name).mkdir(exist_ok=True)
            write_encoded(
                folder / name / file,
                stored.astype(int),
                syntax,
                bits_stored=bits,
                signed=False,
                ImagePositionPatient=[float(col[0, 0]), float(row[0, 0]), SPACING_Z_MM * index],
                PixelSpacing=[PIXEL_MM, PIXEL_MM],
                InstanceNumber=index + 1,
                RescaleIntercept=0 if bits == 8 else -1024,
            )
    return folder


def damaged_series(whole: Path, raw: Path, seed: int, every: int = 1, rounds: int = 1) -> dict[str, str]:
    """Write series of three good slices and a damaged one; what was done to each, by series id."""
    rng, kinds, number = np.random.default_rng(seed), {}, 0
    for name in [*SYNTAXES] * rounds:
        contents = {file: (whole / name / file).read_bytes() for file in FILES}
        for kind, damaged in mutations(contents[DAMAGED], rng):
            number += 1
            if number % every:
                continue
            folder = raw / "train_images" / str(number) / str(number)
            folder.mkdir(parents=True)
            for file, content in {**contents, DAMAGED: damaged}.items():
                (folder / file).write_bytes(content)
            kinds[str(number)] = f"{name}, {kind}"
    return kinds


def prepare(raw: Path, output: Path) -> PreparedRun:
    job = PrepareJob(output, (WINDOWS["soft"],), size=32, source_window=WINDOWS["soft"], silence_limit_s=20)
    return prepare_all(find_sources(raw), job, jobs=2)


def check(run: PreparedRun, kinds: dict[str, str]) -> Counter:
    """Every series is prepared from its good slices, and the damaged file is used or reported."""
    dataset, fates = run.dataset, Counter()
    rejected = pd.read_csv(dataset.folder / "rejected.csv", dtype=str)
    table = dataset.all_series.set_index("series_id")
    assert sorted(table.index) == sorted(kinds)
    lost = []
    for series_id, kind in kinds.items():
        if table.loc[series_id, "status"] not in USABLE:  # a slice of shuffled bits may leave doubts
            lost.append(f"{kind}: {table.loc[series_id, 'reason']}")
            continue
        used = {name.split(" ")[0] for name in dataset.read_slice_table(series_id, series_id)["source"]}
        left_out = {name.split(" ")[0] for name in rejected.loc[rejected["series_id"] == series_id, "source"]}
        if used | left_out != set(FILES) or len(used) < len(FILES) - 1:
            lost.append(f"{kind}: {sorted(used)} used, {sorted(left_out)} left out")
        fates["used" if DAMAGED in used else "left out"] += 1
        fates["after a crash or hang"] += "crashed or hung" in str(table.loc[series_id, "reason"])
    assert not lost, "\n".join(lost)
    return fates


def test_prepare_all_loses_one_file_per_damage_in_a_sample(whole, tmp_path):
    kinds = damaged_series(whole, tmp_path / "raw", seed=0, every=SAMPLE)
    assert len(kinds) >= 20
    check(prepare(tmp_path / "raw", tmp_path / "out"), kinds)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", [1, 2])
def test_prepare_all_loses_one_file_per_damage(whole, tmp_path, seed):
    kinds = damaged_series(whole, tmp_path / "raw", seed, rounds=2)
    assert len(kinds) >= 500
    run = prepare(tmp_path / "raw", tmp_path / "out")
    fates = check(run, kinds)
    print(f"\nseed {seed}: {len(kinds)} damaged files in {run.seconds:.0f} s, {dict(fates)}")
