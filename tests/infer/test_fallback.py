"""Networks that fail are tried again with less, and give the same."""

import errno
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from src.cls.model import TraumaClassifier
from src.core.errors import UserError
from src.infer.fallback import CarefulNetworks
from src.infer.inputs import open_source
from src.infer.networks import Care, Networks
from src.infer.placement import Placement
from tests.helpers.infer_runs import train_small


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "run")


@pytest.fixture
def networks(run):
    return CarefulNetworks(lambda placement: Networks(placement, [run]))


@pytest.fixture
def series(tiny, networks):
    source = open_source(tiny.raw, networks.networks)
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    return source.decode(patient_id, source.series_of(patient_id)[0])()


def predict(networks, series):
    return networks.predict(series, networks.networks.ensemble.all).probabilities


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
def test_short_of_memory_fewer_slices_pass_together(networks, series, monkeypatch, error):
    expected = predict(networks, series)
    tried = limit_memory(monkeypatch, 1, error)
    np.testing.assert_allclose(predict(networks, series), expected, atol=1e-6)
    assert tried == [4, 2, 1, 1]  # of two folds
    tried.clear()
    predict(networks, series)
    assert tried == [1, 1]


def test_another_error_is_not_tried_again(networks, series, monkeypatch):
    tried = limit_memory(monkeypatch, 0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predict(networks, series)
    assert tried == [4]


def test_what_a_device_cannot_do_the_cpu_does(run, networks, series, capsys):
    """The meta device takes models and images, and fails as soon as a number is wanted of them."""
    broken = CarefulNetworks(lambda placement: Networks(placement, [run]))
    broken.move(lambda: Placement(torch.device("meta"), nullcontext))
    np.testing.assert_array_equal(predict(broken, series), predict(networks, series))
    predict(broken, series)
    assert capsys.readouterr().err.count("predicted on the CPU") == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"),
        ValueError("bf16 mixed precision requires PyTorch >= 1.10 and a supported device."),
    ],
)
def test_a_device_that_cannot_be_had_is_left_alone(networks, series, capsys, error):
    def place():
        raise error

    expected = predict(networks, series)
    networks.move(place)
    np.testing.assert_array_equal(predict(networks, series), expected)
    assert "everything is predicted on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [UserError("model.safetensors cannot be read"), OSError(errno.EIO, "I/O error"), MemoryError()]
)
def test_models_that_cannot_be_read_again_for_the_device_stay_on_the_cpu(
    run, networks, series, capsys, error
):
    def load(placement):
        if placement.device.type != "cpu":
            raise error
        return Networks(placement, [run])

    careful = CarefulNetworks(load)
    careful.move(lambda: Placement(torch.device("meta"), nullcontext))
    np.testing.assert_array_equal(predict(careful, series), predict(networks, series))
    assert "everything is predicted on the CPU" in capsys.readouterr().err


def test_half_precision_that_overflows_is_done_in_full(run, networks, series):
    half = Placement(torch.device("cpu"), lambda: torch.autocast("cpu", dtype=torch.float16))
    careful = CarefulNetworks(lambda placement: Networks(placement, [run]))
    careful.move(lambda: half)
    for each in (networks, careful):
        for member in each.networks.ensemble.members:
            member.model.classifier.weight.data.mul_(1e6)  # above what fp16 holds
    share = careful.networks.ensemble.all
    with pytest.raises(FloatingPointError):
        careful.networks.predict(series, share, Care())
    np.testing.assert_array_equal(predict(careful, series), predict(networks, series))


def test_what_is_not_finite_in_full_precision_is_told(networks, series):
    networks.networks.ensemble.members[0].model.classifier.bias.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(networks, series)
