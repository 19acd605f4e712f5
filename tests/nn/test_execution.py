"""Ways to execute a step: each trains the same, and what cannot run here runs eagerly and says so."""

import shutil

import pytest
import torch
from torch import nn

from src.core.runtime import Runtime
from src.nn.encoder import create_encoder
from src.nn.execution import StaticNetwork, replay_where_it_fits, set_execution
from src.voco.run import pretrain
from tests.helpers.training_runs import read_metrics
from tests.helpers.voco_files import draw_anatomy, write_prepared
from tests.helpers.voco_runs import make_options

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("anatomy") / "set", draw_anatomy, series=6)


def test_set_execution_without_a_gpu_runs_eagerly_and_says_so(capsys):
    network = make_network()
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    set_execution("graph", [StaticNetwork(network, (2, 1, 5, 5))], Runtime.create("fp32"))
    assert capsys.readouterr().out == "option --execution graph: it needs a GPU; steps run eagerly\n"
    assert "forward" not in vars(network)


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (1, 1, 5, 5), (2, 1, 6, 6)])
@pytest.mark.parametrize("is_training", [True, False])
def test_replay_where_it_fits_only(shape, is_training):
    """A last batch is smaller, and a network that is evaluated normalises otherwise."""
    network, calls = make_network().train(), []
    eager = network.forward
    replay_where_it_fits(network, eager, lambda images: calls.append(images), torch.zeros(2, 1, 5, 5))
    network.train(is_training)
    network(torch.zeros(shape))
    assert len(calls) == (shape == (2, 1, 5, 5) and is_training)


def test_pretrain_by_graphs_continues_eagerly(anatomy, tmp_path):
    """Without a GPU the steps are eager ones anyway."""
    given = {"steps": 4, "save_every": 2, "backbone": "test_resnet"}
    for name, execution in (("eager", "eager"), ("other", "graph")):
        pretrain(make_options(anatomy, tmp_path / name, execution=execution, **given))
    one, other = (read_metrics(tmp_path / name).to_dict("list") for name in ("eager", "other"))
    assert torch.cuda.is_available() or one == other
    pretrain(make_options(anatomy, tmp_path / "other", execution="eager", **given))


@pytest.mark.parametrize(
    ("execution", "device"),
    [
        pytest.param("compile", "cpu", marks=needs_compiler),
        pytest.param("graph", "cuda", marks=(pytest.mark.gpu, needs_gpu)),
    ],
)
def test_set_execution_trains_as_eager_steps_do(execution, device):
    runtime, found = Runtime.create("fp32"), []
    for each in ("eager", execution):
        network = make_network().to(device).train()
        set_execution(each, [StaticNetwork(network, (2, 1, 5, 5))], runtime)
        images = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)).to(device)
        for _ in range(2):
            network.zero_grad()
            output = network(images)
            output.square().mean().backward()
        gradients = {name: value.grad.clone() for name, value in network.named_parameters()}
        found.append({"output": output.detach().clone(), **gradients, **network.state_dict()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@needs_compiler
@pytest.mark.slow
def test_set_execution_compiles_the_feature_maps_that_a_decoder_takes():
    encoder = create_encoder("test_efficientnet", 1).eval()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    eager = encoder.forward_intermediates
    with torch.inference_mode():
        final, maps = eager(images, norm=True)
    set_execution("compile", [StaticNetwork(encoder, (2, 1, 32, 32))], Runtime.create("fp32"))
    assert encoder.forward_intermediates is not eager
    torch._dynamo.reset()
    compiled_final, compiled_maps = encoder.forward_intermediates(images, norm=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(compiled_final.detach(), final)
    for compiled, expected in zip(compiled_maps, maps, strict=True):
        torch.testing.assert_close(compiled.detach(), expected)
    assert not any("_orig_mod" in name for name in encoder.state_dict())
