"""Ways to execute a step: each trains the same, and what cannot run here runs eagerly and says so."""

import shutil

import pytest
import torch
from torch import nn

from src.core.runtime import Runtime
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


@pytest.mark.parametrize(
    "execution",
    [
        "graph",
        pytest.param("compile", marks=(pytest.mark.slow, needs_compiler)),
    ],
)
def test_pretrain_gives_the_losses_of_eager_steps(anatomy, tmp_path, execution):
    """Also in a run that continues with another execution."""
    given = {"steps": 4, "save_every": 2, "backbone": "test_resnet", "dropout": 0.0}
    tables = []
    for name, chosen in (("eager", "eager"), ("other", execution)):
        pretrain(make_options(anatomy, tmp_path / name, execution=chosen, **given))
        tables.append(read_metrics(tmp_path / name))
    for column in (name for name in tables[0] if name.startswith("loss")):
        first, second = (table[column].astype(float).tolist() for table in tables)
        assert second == pytest.approx(first, rel=1e-4, abs=1e-5)
    pretrain(make_options(anatomy, tmp_path / "other", execution="eager", **given))


@needs_gpu
@pytest.mark.gpu
def test_capture_gives_outputs_gradients_and_statistics_of_eager_steps():
    runtime, found = Runtime.create("fp32"), []
    for execution in ("eager", "graph"):
        network = make_network().cuda().train()
        set_execution(execution, [StaticNetwork(network, (2, 1, 5, 5))], runtime)
        images = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)).cuda()
        for _ in range(2):
            network.zero_grad()
            output = network(images)
            output.square().mean().backward()
        gradients = [value.grad.clone() for value in network.parameters()]
        found.append([output.detach().clone(), *gradients, *network.buffers()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
