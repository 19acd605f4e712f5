"""Several processes that share a batch train as one process does."""

import csv
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import train_voco
from src.nn import training
from src.nn.training import save_checkpoint
from tests.helpers.training_runs import read_metrics
from tests.helpers.two_processes import one_thread, run_two
from tests.helpers.voco_files import draw_anatomy, write_prepared

pytestmark = pytest.mark.slow
STEPS = 20
COMMON = (
    "--backbone test_convnext --windows soft organ wide "  # normalises every image separately
    "--canvas 96 --tile 32 --depth 6 --slices 2 --foreground 0 --batch 4 --projection 32 --dropout 0 "
    f"--lr 1e-3 --warmup 0.2 --steps {STEPS} --log-every 1 --save-every 10 --workers 0 --precision fp32"
).split()


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


@pytest.fixture(scope="module", params=["overlap", "softmax"])
def alone(anatomy, request, tmp_path_factory):
    """A run of this process alone, and its checkpoint of half-way."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(training, "save_checkpoint", lambda path, content: keep(folder, path, content))
        train_voco.main(arguments(anatomy, folder / "run", "--objective", request.param))
    return SimpleNamespace(objective=request.param, run=folder / "run", halfway=folder / "10.pt")


def keep(folder, path, content):
    save_checkpoint(path, content)
    shutil.copy(path, folder / f"{content['step']}.pt")


def arguments(data, output, *changes):
    return ["--data", str(data), "--output", str(output), *COMMON, *map(str, changes)]


def assert_same_losses(alone, folder):
    first, second = (list(csv.DictReader((run / "metrics.csv").open())) for run in (alone.run, folder))
    first = first[-len(second) :]
    assert second and second[-1]["step"] == str(STEPS)
    for one, two in zip(first, second, strict=True):
        assert (one["step"], one["cross_trials"]) == (two["step"], two["cross_trials"])
        for name in (name for name in one if name.startswith("loss")):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-5), (
                name,
                one["step"],
            )


@pytest.mark.parametrize("resumes", [False, True])
def test_two_processes_give_the_losses_of_one(anatomy, alone, tmp_path, resumes):
    """Each has half of the batch; comparisons between volumes reach across."""
    more = ("--resume", alone.halfway) if resumes else ()
    run = run_two("train_voco.py", arguments(anatomy, tmp_path, "--objective", alone.objective, *more))
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count(f"step {STEPS}/{STEPS}") == 1  # one process prints
    assert (f"after step 10 of {STEPS}" in run.stdout) == resumes
    assert_same_losses(alone, tmp_path)


def test_two_processes_with_a_cache_give_the_losses_of_one(anatomy, alone, tmp_path):
    for name in ("fills", "reads"):
        more = ("--objective", alone.objective, "--cache", tmp_path / "cache")
        run = run_two("train_voco.py", arguments(anatomy, tmp_path / name, *more))
        assert run.returncode == 0, run.stderr[-2000:]
        assert_same_losses(alone, tmp_path / name)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 6


def test_two_processes_train_by_simclr(anatomy, tmp_path):
    """Among the views of both. On CPUs the BatchNorm of its head has the statistics of one process, so that
    losses are alike at the beginning only."""
    given = ("--objective", "simclr", "--log-every", 5)
    with one_thread():
        train_voco.main(arguments(anatomy, tmp_path / "one", *given))
    run = run_two("train_voco.py", arguments(anatomy, tmp_path / "two", *given))
    assert run.returncode == 0, run.stderr[-2000:]
    one, two = (read_metrics(tmp_path / each)["loss"].astype(float) for each in ("one", "two"))
    assert two[0] == pytest.approx(one[0], rel=0.1)
    assert np.isfinite(two).all() and two.iloc[-1] < two[0]


def test_every_process_ends_in_one_line_when_one_fails(anatomy, tmp_path):
    data = tmp_path / "set"
    shutil.copytree(anatomy, data)
    slices = sorted(data.glob("images/*/*/*.png"))
    for path in slices[-12:]:  # of the last series: at each step at most one process reads it
        path.write_bytes(b"")
    run = run_two("train_voco.py", arguments(data, tmp_path / "run"))
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert run.returncode != 0
    assert len(lines) == 2
    assert any("is damaged" in line for line in lines)
    assert any("lost the others" in line for line in lines)
