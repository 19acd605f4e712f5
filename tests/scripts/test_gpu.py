"""What only a GPU can show: the scripts on it, in each precision, and with less memory than they want."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.cls.model import ClassifierSpec, TraumaClassifier, save_classifier
from src.cls.views import StackView
from src.core.runtime import torch_seed
from src.core.targets import CLASS_WEIGHTS
from src.data.prepared import PreparedDataset
from src.infer.ensemble import Ensemble
from src.infer.predictor import SeriesPredictor
from src.infer.stack_sources import open_source
from tests.helpers.infer_runs import SMALL, read_report, read_series, read_submission

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
SLICES = 48
TRAINING = "--backbone mobilenetv3_small_050 --canvas 48 --depth 6 --tile 32 --slices 2 --batch 3 --lr 1e-3"
PAIR = "--backbones test_efficientnet test_resnet --batch 4 --unlabelled-batch 4 --verification 0.5"


def test_there_is_a_gpu():
    assert torch.cuda.is_available()


def command(script: str, *given: object) -> list[str]:
    return [sys.executable, str(ROOT / script), *" ".join(map(str, given)).split()]


def run(script: str, *given: object, gpu: bool = True) -> str:
    """What a script prints, in a process of its own, since a process has one precision."""
    environment = os.environ | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(
        command(script, *given), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def kill_and_continue(script: str, *given: object) -> None:
    """A run of 40 steps, killed after step 20, and the same command again."""
    wanted = command(script, *given, "--steps 40")
    with subprocess.Popen(wanted, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 20/40"):
                process.kill()
                break
    assert "of 40" in subprocess.run(wanted, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run of train_cls.py on the GPU."""
    output = tmp_path_factory.mktemp("models") / "run"
    data = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {output}"
    run("train_cls.py", data, SMALL)
    return output


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-3), ("bf16", 0.03), ("fp16", 0.01)])
def test_infer_on_a_gpu_agrees_with_a_cpu(tiny, trained, tmp_path, precision, most):
    """In fp32 too convolutions round their inputs to TF32 there."""
    answers = []
    for gpu in (True, False):
        output = tmp_path / str(gpu) / "submission.csv"
        given = f"--input {tiny.raw} --models {trained} --sample {tiny.sample} --output {output}"
        told = run("infer.py", given, "--precision", precision if gpu else "fp32", gpu=gpu)
        assert f"; {'cuda' if gpu else 'cpu'}" in told
        assert set(read_report(output.parent).status) == {"ok"}
        answers.append(read_submission(output.parent).to_numpy())
    assert 0 < np.abs(answers[0] - answers[1]).max() < most


@pytest.fixture
def wide(tmp_path) -> Path:
    """A network of random weights whose activations of a stack take much more room than itself."""
    view = StackView(("soft", "organ", "wide"), size=256, crop=192, slices=SLICES)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec("efficientnet_b0", view, (0.5,) * 3, (0.25,) * 3, hidden=8, prior=prior)
    with torch_seed(0):
        model = TraumaClassifier(spec)
    save_classifier(tmp_path / "wide" / "fold0" / "model.safetensors", model, spec)
    return tmp_path / "wide"


def test_predict_with_little_memory_passes_fewer_slices(tiny, wide, capsys):
    ensemble = Ensemble([wide])
    predictor = SeriesPredictor(ensemble)
    predictor.use_fastest("auto")
    source = open_source(tiny.raw, ensemble.stack_kinds)
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    series = read_series(source, (patient_id, source.series_of(patient_id)[0]))
    torch.cuda.empty_cache()
    resting = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    expected = predictor.predict(series, ensemble.full).probabilities
    peak = torch.cuda.max_memory_allocated()
    assert peak > 2 * resting
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((resting + 0.3 * (peak - resting)) / total)
        answer = predictor.predict(series, ensemble.full).probabilities
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    told = capsys.readouterr().err
    assert "memory is short: from now on" in told
    assert "on the CPU" not in told
    np.testing.assert_allclose(answer, expected, atol=0.02)  # bf16: other sizes, other algorithms


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_train_voco_continues_a_killed_run_on_a_gpu(tiny, tmp_path, precision):
    given = f"--data {tiny.prepared} --output {tmp_path} --precision {precision} --save-every 5 --log-every 5"
    kill_and_continue("train_voco.py", given, TRAINING)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["step"].tolist() == list(range(5, 41, 5))
    assert np.isfinite(table["loss"]).all() and table["loss"].iloc[-1] < table["loss"].iloc[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train_seg_and_segment_on_a_gpu(tiny, tmp_path, precision):
    output, masks = tmp_path / "pair", tmp_path / "masks"
    given = f"--data {tiny.prepared} --output {output} --precision {precision} --steps 10 --log-every 5"
    run("train_seg.py", given, PAIR)
    run("segment.py", f"--model {output} --data {tiny.prepared} --output {masks} --precision {precision}")
    series = PreparedDataset.open(tiny.prepared).series
    assert len(list(masks.glob("*/*/*.png"))) == series["slices"].sum()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_train_cls_on_a_gpu(tiny, tmp_path, precision):
    data = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {tmp_path / 'run'}"
    run("train_cls.py", data, SMALL, f"--precision {precision}")
    oof = pd.read_csv(tmp_path / "run" / "oof.csv")
    assert len(oof) == 10 and np.isfinite(oof.iloc[:, 1:].to_numpy(dtype=float)).all()


def losses(run: Path) -> np.ndarray:
    table = pd.read_csv(run / "metrics.csv")
    return table[[name for name in table if name.startswith("loss")]].to_numpy()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_train_voco_by_graphs_gives_the_losses_of_eager_steps(tiny, tmp_path, precision):
    options, tables = f"--precision {precision} --steps 5 --log-every 1 --save-every 5 --dropout 0", []
    for execution in ("eager", "graph"):
        given = f"--data {tiny.prepared} --output {tmp_path / execution} --execution {execution}"
        assert "run eagerly" not in run("train_voco.py", given, TRAINING, options)
        tables.append(losses(tmp_path / execution))
    np.testing.assert_allclose(tables[1][0], tables[0][0], rtol=0.01, atol=0.01)
    np.testing.assert_allclose(tables[1], tables[0], rtol=0.1, atol=0.1)  # rounding adds up


def test_train_cls_and_train_seg_run_by_graphs(tiny, tmp_path):
    """The classifier with a last batch of another size."""
    data = f"--data {tiny.prepared} --labels {tiny.labels} --folds {tiny.folds} --output {tmp_path / 'cls'}"
    assert "run eagerly" not in run("train_cls.py", data, SMALL, "--fold 0 --batch 3 --execution graph")
    given = f"--data {tiny.prepared} --output {tmp_path / 'seg'} --steps 10 --log-every 5 --execution graph"
    assert "run eagerly" not in run("train_seg.py", given, PAIR)
    assert np.isfinite(losses(tmp_path / "seg")).all()


def test_train_seg_continues_a_killed_run_on_a_gpu(tiny, tmp_path):
    given = f"--data {tiny.prepared} --output {tmp_path} --log-every 5 --save-every 5"
    kill_and_continue("train_seg.py", given, PAIR)
