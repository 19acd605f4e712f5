"""The representation study on tiny sets: equal steps, equal seconds, what is kept, and its table."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.voco_files import draw_anatomy, write_prepared

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import presets_study
from harness import run_benchmark

from src.core.errors import UserError
from src.nn.training import load_checkpoint

PRESET = (
    "backbone: test_efficientnet\nwindows: [soft, organ, wide]\ncanvas: 48\ndepth: 6\ntile: 16\nslices: 2\n"
    "batch: 2\nprojection: 8\nsteps: 3\nlog_every: 1\nsave_every: 1\nworkers: 0\nforeground: 0.0\n"
)
METHODS = ("v2", "plus")

pytestmark = pytest.mark.slow


def main(arguments):
    run_benchmark(presets_study.main, presets_study.PresetsOptions, arguments)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("representation")
    work = folder / "work"
    for name in ("unlabelled", "probe"):
        write_prepared(work / "prepared" / name, draw_anatomy, series=4, slices=8)
    for name, changes in zip(METHODS, ("", "objective: softmax\nslices: 1\n"), strict=True):
        (folder / f"{name}.yaml").write_text(PRESET.replace("slices: 2\n", "") + (changes or "slices: 2\n"))
    presets = [f"{folder}/{name}.yaml" for name in METHODS]
    arguments = [
        *("--work", str(work), "--presets", *presets, "--seconds-of", presets[1], "--unlabelled", "4"),
        *("--seeds", "0", "--stage", "pretrain", "evaluate", "table", "--json", f"{folder}/figures.json"),
    ]
    main(arguments)
    return SimpleNamespace(folder=folder, work=work, arguments=arguments)


def read_rows(study: SimpleNamespace) -> dict:
    return {row["method"]: row for row in json.loads((study.folder / "figures.json").read_text())["runs"]}


def test_main_measures_every_method_and_random_weights(study):
    rows = read_rows(study)
    assert list(rows) == ["random weights, test_efficientnet", "v2", "plus", "v2, equal seconds"]
    for row in rows.values():
        figure = row["figures"]["placing/standard/cross/features"]
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1 and figure["trials"] > 0


def test_plan_equal_seconds_scales_steps_by_time(study):
    saved = {
        name: load_checkpoint(study.work / "voco" / f"{name}-s0" / "last.pt") for name in ("v2-4", "plus-4")
    }
    expected = max(1, round(3 * saved["plus-4"]["seconds"] / saved["v2-4"]["seconds"]))
    assert load_checkpoint(study.work / "voco" / "v2-4t-s0" / "last.pt")["step"] == expected


def test_evaluate_measures_only_what_is_lost(study):
    paths = sorted((study.work / "figures").iterdir())
    before = {path: path.stat().st_mtime_ns for path in paths}
    wanted = read_rows(study)
    paths[0].unlink()
    main(study.arguments)
    assert [path for path in paths if path.stat().st_mtime_ns != before[path]] == [paths[0]]
    assert read_rows(study) == wanted


def test_evaluate_measures_other_weights_again(study):
    path = study.work / "figures" / "v2-4-s0-teacher-probe.json"
    stale = json.loads(path.read_text()) | {"encoder": "other"}
    path.write_text(json.dumps(stale))
    main(study.arguments)
    assert json.loads(path.read_text())["encoder"] != "other"


def test_show_refuses_a_study_without_its_runs(study, tmp_path):
    shutil.copytree(study.work, tmp_path / "work", symlinks=True)
    (tmp_path / "work" / "voco" / "plus-4-s0" / "piece.json").unlink()
    arguments = [*study.arguments, "--work", str(tmp_path / "work"), "--stage", "table"]
    with pytest.raises(UserError, match="plus-4-s0 is not finished: run --stage pretrain"):
        main(arguments)
