"""README's recipe, command by command, at the competition's counts: does every step end, in how much memory?

    python benchmarks/rehearsal.py --tables data/rsna --work data/rehearsal

A few phantom series of 15 to 20 slices stand under the ids of the real tables (train.csv and others), as
links: 3,147 patients, 4,711 series. Every command of the recipe but the download then runs as README shows
it, with one more --config, which makes networks and images tiny. The table that is printed has the minutes of
each and the peak of its memory, summed over its processes.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from harness import BenchOptions, process_tree, resident_bytes, run_main
from study import make_phantom

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.log import format_table, say

PROFILE = "configs/profiles/rehearsal.yaml"
PHANTOM = "--patients 12 --test-patients 0 --matrix 64 --spacing-z-mm 20 --segmentation-rate 1 --seed 41"
DATA, TABLES = "data/rsna-2023-abdominal-trauma-detection.zip", "data/rsna"
"""Where the recipe has the images (here a folder of that name) and the tables."""
SEGMENTED = 206
"""Series of the competition that have masks."""
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class RehearsalOptions(BenchOptions):
    tables: Path
    """folder with the competition's tables"""
    work: Path = Path("data/rehearsal")
    """folder of the rehearsal, with data/ and runs/ in it; new or empty"""
    patients: int = 0
    """only the first of this number; 0: all"""


def main(options: RehearsalOptions) -> dict[str, Any]:
    work = options.work.resolve()
    for name in ("src", "configs", "folds", *(path.name for path in ROOT.glob("*.py"))):
        link(work / name, ROOT / name)
    make_phantom(work / "phantom", PHANTOM)
    place_series(work, options.tables, options.patients)
    rows = []
    for command in read_recipe():
        row = run_command([*shlex.split(command), "--config", PROFILE], work)
        say(f"{row['minutes']:.1f} min, {row['peak GB']:.2f} GB, exit status {row['status']}: {command}")
        rows.append(row)
        if row["status"]:
            raise UserError(f"{command} ended with exit status {row['status']}: see {work / 'log.txt'}")
    say(format_table(rows, 2))
    return {"commands": rows}


def read_recipe() -> list[str]:
    """The commands of the first block under README's heading `The recipe`, but for the download."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("\n## The recipe\n")[1].split("```")[1]
    return re.findall(r"^python .*", block, re.MULTILINE)


def place_series(work: Path, tables: Path, patients: int = 0) -> None:
    """Write the tables of the first patients, and link a phantom series to each of their series.

    Raises:
        UserError: a table is missing.
    """
    ids = {"patient_id": str, "series_id": str}
    names = ("train", "train_series_meta", "image_level_labels", "sample_submission", "test_series_meta")
    try:
        found = {name: pd.read_csv(tables / f"{name}.csv", dtype=ids) for name in names}
    except OSError as error:
        raise UserError(f"--tables {tables}: {error}") from None
    series = found["train_series_meta"]
    if patients:
        found["train"] = found["train"].head(patients)
        kept = set(found["train"].patient_id)
        found["train_series_meta"] = series = series[series.patient_id.isin(kept)]
        marks = found["image_level_labels"]
        found["image_level_labels"] = marks[marks.patient_id.isin(kept)]
    shown = sorted((work / "phantom" / "train_images").glob("*/*"))
    slices = min(len(list(folder.iterdir())) for folder in shown)
    marks = found["image_level_labels"]
    marks = marks.assign(instance_number=1 + marks.instance_number % slices).drop_duplicates()
    found["image_level_labels"] = marks
    for folder in (work / DATA, work / TABLES):
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in found.items():
            table.to_csv(folder / f"{name}.csv", index=False)
    rows = zip(series.itertuples(index=False), cycle(shown), strict=False)
    for number, (row, source) in enumerate(rows):
        link(work / DATA / "train_images" / row.patient_id / row.series_id, source)
        if number < min(SEGMENTED, len(series) // 3):
            mask = work / "phantom" / "segmentations" / f"{source.name}.nii"
            link(work / DATA / "segmentations" / f"{row.series_id}.nii", mask)
    for number, patient in enumerate(found["sample_submission"].patient_id):
        link(work / DATA / "test_images" / patient / str(number), shown[number % len(shown)])


def link(path: Path, target: Path) -> None:
    """Make a link, unless it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(target)


def run_command(words: Sequence[str], work: Path) -> dict[str, Any]:
    """Run a command in `work`; its minutes, the peak memory of all its processes, and its exit status."""
    program = [sys.executable, *words[1:]]
    started, peak = time.monotonic(), 0
    with (work / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n$ {shlex.join(words)}\n")
        log.flush()
        process = subprocess.Popen(program, cwd=work, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, sum(resident_bytes("VmRSS", pid) for pid in process_tree(process.pid)))
            time.sleep(POLL_S)
    name = words[2] if words[1] == "-m" else words[1]
    minutes = (time.monotonic() - started) / 60
    return {"command": name, "minutes": minutes, "peak GB": peak / 1e9, "status": process.returncode}


if __name__ == "__main__":
    run_main(main, RehearsalOptions)
