"""How many files of the kit a user's data pass, and how many calls lie between `main` and the loss.

    python benchmarks/roads.py
    python benchmarks/roads.py --repo ../another_checkout --json roads.json

A tiny phantom goes through the scripts of a checkout. A file counts if a function of it runs (imports do not
count), in the script or in one of its child processes; `calls` is the depth of the loss below `main`.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.core.config import ROOT, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say

TRACER = """
import inspect, os, sys, threading

root, log, stop = os.environ["ROADS_ROOT"], os.environ["ROADS_LOG"], os.environ["ROADS_STOP"]
seen, ended = set(), []


def is_own(code):
    # a function of the kit; the bodies of modules and classes run at import and are not optimised
    name = code.co_filename.removeprefix(root)
    is_function = code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith("<")
    is_kit = name != code.co_filename and (name.startswith("src" + os.sep) or os.sep not in name)
    return bool(is_function and is_kit)


def trace(frame, event, _):
    if event != "call" or ended or not is_own(frame.f_code):
        return
    name, lines = frame.f_code.co_filename.removeprefix(root), []
    if name not in seen:
        seen.add(name)
        lines.append(name)
    if stop and frame.f_code.co_name == stop:
        ended.append(True)
        depth, below = 0, frame.f_back
        while below is not None:
            depth, below = depth + is_own(below.f_code), below.f_back
        lines.append(f"calls {depth}")
    with open(log, "a") as file:
        file.writelines(line + chr(10) for line in lines)


sys.setprofile(trace)
threading.setprofile(trace)
"""
"""Becomes sitecustomize.py, which every Python process of a command imports when it starts."""


@dataclass(frozen=True)
class RoadOptions:
    repo: Path = ROOT
    """checkout whose scripts run"""
    json: Path | None = None
    """file for the figures"""


def main(argv: list[str] | None = None) -> None:
    options = parse_options(RoadOptions, argv, prog="roads.py", description=__doc__)
    repo = options.repo.resolve()
    rows, files = [], {}
    with tempfile.TemporaryDirectory(prefix="roads-") as temporary:
        folder = Path(temporary)
        (folder / "sitecustomize.py").write_text(TRACER, encoding="utf-8")
        make_phantom(folder)
        for name, command, stop in list_roads(folder):
            found, calls = walk(repo, folder, command, stop)
            rows.append(
                {"road": name, "files": len(found), "lines": count_lines(repo, found), "calls": calls or "-"}
            )
            files[name] = found
    say(format_table(rows))
    if options.json:
        write_json({"rows": rows, "files": files}, options.json)


def make_phantom(folder: Path) -> None:
    """Four training patients and one test patient, with two folds."""
    size = "--patients 4 --test-patients 1 --matrix 64 --spacing-z-mm 18 --segmentation-rate 1 --seed 1"
    run(ROOT, folder, f"-m src.phantom --output {folder}/raw {size}")
    tables = f"--labels {folder}/raw/train.csv --series {folder}/raw/train_series_meta.csv"
    run(ROOT, folder, f"-m src.data.folds {tables} --n-folds 2 --output {folder}/folds.csv")


def list_roads(folder: Path) -> list[tuple[str, str, str]]:
    """Name, command, and the function at whose first call the road ends (empty: the end of the command)."""
    data = f"--data {folder}/prepared"
    voco = "--backbone test_resnet --windows soft --canvas 48 --tile 16 --depth 4 --slices 2 --projection 16"
    steps = "--batch 2 --steps 1 --log-every 1 --save-every 1 --workers 0"
    labels = f"--labels {folder}/raw/train.csv --folds {folder}/folds.csv"
    cls = "--backbone test_resnet --slices 4 --crop 32 --hidden 8 --epochs 1 --tta none --workers 0"
    sample = f"--sample {folder}/raw/sample_submission.csv --output {folder}/submission.csv"
    return [
        (
            "prepare_data.py: a DICOM file to its PNG",
            f"prepare_data.py --input {folder}/raw --output {folder}/prepared --size 48 --jobs 1",
            "",
        ),
        (
            "train_voco.py: to the loss of a step",
            f"train_voco.py {data} --output {folder}/voco {voco} {steps}",
            "positive_loss",
        ),
        ("train_cls.py: to oof.csv", f"train_cls.py {data} {labels} --output {folder}/cls {cls}", ""),
        (
            "infer.py: a patient to submission.csv",
            f"infer.py --input {folder}/raw --models {folder}/cls {sample}",
            "",
        ),
    ]


def walk(repo: Path, folder: Path, command: str, stop: str) -> tuple[list[str], int | None]:
    """The files that a command enters, sorted, and the depth of the function that ends the road."""
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    traced = {"ROADS_ROOT": f"{repo}{os.sep}", "ROADS_LOG": str(log), "ROADS_STOP": stop}
    run(repo, folder, command, traced | {"PYTHONPATH": str(folder)})
    lines = log.read_text(encoding="utf-8").splitlines()
    depths = [int(line.split()[1]) for line in lines if line.startswith("calls ")]
    return sorted({line for line in lines if not line.startswith("calls ")}), depths[0] if depths else None


def run(repo: Path, folder: Path, command: str, environment: dict[str, str] | None = None) -> None:
    """Run a Python command in a checkout.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=repo,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{command.split()[0]} in {repo} failed: {done.stderr.strip()[-300:]}")


def count_lines(repo: Path, files: list[str]) -> int:
    return sum(len((repo / name).read_text(encoding="utf-8").splitlines()) for name in files)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
