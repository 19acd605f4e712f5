"""Networks that fail are run again with fewer resources, and give the same."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.cls.model import TraumaClassifier
from src.infer import predictor as predictor_module
from src.infer.ensemble import Ensemble
from src.infer.predictor import SeriesPredictor
from src.infer.stack_sources import open_source
from tests.helpers.infer_runs import read_series


@pytest.fixture
def predictor(tiny_run):
    return SeriesPredictor(Ensemble([tiny_run]))


@pytest.fixture
def series(tiny, predictor):
    source = open_source(tiny.raw, predictor.ensemble.stack_kinds)
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    return read_series(source, (patient_id, source.series_of(patient_id)[0]))


def predict(predictor, series):
    return predictor.predict(series, predictor.ensemble.full).probabilities


@pytest.fixture
def fastest(monkeypatch):
    """Sets what `use_fastest` finds: a device with its autocast, or an error."""

    def set_fastest(device=None, autocast=nullcontext, error=None):
        def create(*_, **__):
            if error is not None:
                raise error
            return SimpleNamespace(device=torch.device(device), autocast=autocast)

        monkeypatch.setattr(predictor_module.Runtime, "create", create)

    return set_fastest


def limit_memory(monkeypatch, most, error):
    """Let stacks fail of which more than `most` slices pass the network together; the sizes tried."""
    forward, tried = TraumaClassifier.forward, []

    def limited(self, images, padding=None, decoded=None, slices_at_once=None):
        at_once = min(slices_at_once or images.shape[1], images.shape[1])
        tried.append(at_once)
        if at_once > most:
            raise error
        return forward(self, images, padding, decoded, slices_at_once)

    monkeypatch.setattr(TraumaClassifier, "forward", limited)
    return tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_predict_passes_fewer_slices_together_when_memory_is_short(predictor, series, monkeypatch, error):
    expected = predict(predictor, series)
    tried = limit_memory(monkeypatch, 1, error)
    np.testing.assert_allclose(predict(predictor, series), expected, atol=1e-6)
    assert tried == [4, 2, 1, 1]  # of two folds
    tried.clear()
    predict(predictor, series)
    assert tried == [1, 1]


def test_predict_does_not_try_again_after_another_error(predictor, series, monkeypatch):
    tried = limit_memory(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predict(predictor, series)
    assert tried == [4]


def test_predict_falls_back_to_the_cpu_where_a_device_fails(predictor, series, fastest, capsys):
    """The meta device takes models and images, and fails as soon as a number is wanted of them."""
    expected = predict(predictor, series)
    fastest("meta")
    predictor.use_fastest("auto")
    for _ in range(2):
        np.testing.assert_array_equal(predict(predictor, series), expected)
    assert capsys.readouterr().err.count("predicted on the CPU") == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
        ValueError("bf16 mixed precision requires PyTorch >= 1.10 and a supported device."),
        MemoryError(),
    ],
)
def test_use_fastest_stays_on_the_cpu_where_the_gpu_cannot_be_used(predictor, series, fastest, capsys, error):
    expected = predict(predictor, series)
    fastest(error=error)
    predictor.use_fastest("auto")
    np.testing.assert_array_equal(predict(predictor, series), expected)
    assert "everything is predicted on the CPU" in capsys.readouterr().err


def test_predict_repeats_in_full_precision_where_half_overflows(predictor, series, fastest, monkeypatch):
    for member in predictor.ensemble.members:
        ((model, _),) = member.networks
        model.classifier.weight.data.mul_(1e6)  # above what fp16 holds
    expected, tried = predict(predictor, series), []
    fastest("cpu", lambda: torch.autocast("cpu", dtype=torch.float16))
    predictor.use_fastest("auto")
    predict_once = Ensemble.predict

    def noted(ensemble, read, subset, settings):
        tried.append(settings.autocast is nullcontext)
        return predict_once(ensemble, read, subset, settings)

    monkeypatch.setattr(Ensemble, "predict", noted)
    np.testing.assert_array_equal(predict(predictor, series), expected)
    assert tried == [False, True]


def test_predict_raises_where_full_precision_is_not_finite(predictor, series):
    ((model, _),) = predictor.ensemble.members[0].networks
    model.classifier.bias.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(predictor, series)
