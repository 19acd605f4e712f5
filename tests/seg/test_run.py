"""A training step of the two sub-networks: which term trains which of them."""

import math

import pytest
import torch

from src.core.runtime import Runtime, torch_seed
from src.nn.training import LoopSettings, TrainingLoop
from src.seg import run as seg_run
from src.seg import unlabelled
from src.seg.dataset import SliceBatch, SliceOrder
from src.seg.losses import pseudo_labels
from src.seg.run import PairTraining
from src.seg.split import open_data
from tests.helpers.device_waits import DEVICES, train_without_waits
from tests.helpers.seg_runs import make_options, write_organ_set


@pytest.fixture(scope="module")
def organ_set(tmp_path_factory):
    return write_organ_set(tmp_path_factory.mktemp("organs") / "set")


def prepare(organ_set, **changes):
    """A loop before its first step, and a batch."""
    options = make_options(organ_set, organ_set / "unused", **changes)
    data, runtime = open_data(options), Runtime.create("fp32")
    method = PairTraining(options, data, runtime)
    settings = LoopSettings(options.steps, 0, options.lr, options.clip_norm, options.seed, 1, 1)
    loop = TrainingLoop(method, settings, runtime, organ_set / "unused", {})
    keys = SliceOrder(options, 0).share(0)
    batch = SliceBatch(*map(torch.stack, zip(*[method.dataset[key] for key in keys], strict=True)))
    return loop, batch


def run_step(organ_set, done=0.9, **changes):
    """A step towards the end of a run, when the ramp is nearly up: the pair with its gradients, figures."""
    loop, batch = prepare(organ_set, **changes)
    loop.step = int(done * loop.settings.steps)
    figures, is_lost, _ = loop.train_on(batch, loop.step)
    assert not is_lost
    return loop.method.network, figures


def gradients(net: torch.nn.Module) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters() if p.grad is not None))


def test_losses_reports_every_term_with_its_weight(organ_set):
    pair, figures = run_step(organ_set, unreliable=0.9, steps=10, done=0.5)
    terms = {name: value for name, value in figures.items() if name.startswith("loss_")}
    names = ("supervised_a", "supervised_b", "verification", "pseudo", "contrast")
    assert set(terms) == {f"loss_{name}" for name in names}
    assert all(term.item() >= 0 and not term.requires_grad for term in terms.values())
    assert all(terms[f"loss_{name}"] > 0 for name in ("supervised_a", "pseudo", "contrast"))
    assert gradients(pair.a) > 0 and gradients(pair.b) > 0


@pytest.mark.parametrize(("better", "student"), [("a", "b"), ("b", "a")])
def test_losses_pseudo_labels_train_the_sub_network_with_the_higher_error(
    organ_set, monkeypatch, better, student
):
    only_pseudo(monkeypatch, errors={"a": 0.5 + (better == "b"), "b": 0.5 + (better == "a")})
    pair, figures = run_step(organ_set, contrast=0.0, verification=0.0, steps=10)
    assert figures["loss_pseudo"] > 0
    assert gradients(getattr(pair, student)) > 1e-3
    assert gradients(getattr(pair, better)) == 0


def only_pseudo(monkeypatch, errors):
    """Replace the supervised losses of A and B by constants without a gradient."""
    names = iter("ab")
    monkeypatch.setattr(
        seg_run, "label_loss", lambda logits, labels: logits.sum() * 0.0 + errors[next(names)]
    )


def test_losses_contrast_trains_encoders_decoders_and_projections_of_both(organ_set, monkeypatch):
    only_pseudo(monkeypatch, errors={"a": 1.0, "b": 1.0})
    pair, figures = run_step(organ_set, pseudo=0.0, verification=0.0, unreliable=0.9, steps=10, done=0.5)
    assert figures["loss_contrast"] > 0
    for net in (pair.a, pair.b):
        for part in (net.net.encoder, net.net.decoder, net.projection):
            assert gradients(part) > 1e-6
        assert gradients(net.net.segmentation_head) == 0  # its own term does not see the logits


def test_losses_verification_trains_both(organ_set, monkeypatch):
    only_pseudo(monkeypatch, errors={"a": 1.0, "b": 1.0})
    pair, figures = run_step(organ_set, pseudo=0.0, contrast=0.0, confidence=0.0)
    assert figures["loss_verification"] > 0
    assert gradients(pair.a) > 1e-3 and gradients(pair.b) > 1e-3


def test_losses_pseudo_labels_come_from_ema_weights_on_unchanged_slices(organ_set):
    """Targets do not depend on the augmented inputs or on the current weights."""
    targets = []

    def keep(*given):
        targets.append(pseudo_labels(*given))
        return targets[-1]

    for change in ("nothing", "views", "weights"):
        loop, batch = prepare(organ_set, contrast=0.0, verification=0.0, steps=10)
        loop.step = 9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unlabelled, "pseudo_labels", keep)
            if change == "views":
                batch.strong[2:] = 255 - batch.strong[2:]
            if change == "weights":
                with torch.no_grad():
                    loop.method.network.a.net.segmentation_head[0].bias += 5.0
                    loop.method.network.b.net.segmentation_head[0].bias += 5.0
            with torch_seed(0):
                loop.train_on(batch, loop.step)
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])


def test_losses_unlabelled_terms_rise_with_the_ramp(organ_set):
    terms = []
    for done in (0.0, 0.5, 0.9):
        with torch_seed(0):
            terms.append(run_step(organ_set, done=done, steps=10)[1]["loss_pseudo"].item())
    # the same weights and the same batch: the weight is the only difference besides the reliable share
    assert terms[0] < 0.02 * terms[2]
    assert terms[0] < terms[1] < terms[2]


def test_after_step_updates_the_ema_weights(organ_set):
    loop, batch = prepare(organ_set, ema_decay=0.5, steps=2000)
    loop.step = 1000  # timm's warm-up of the decay is over
    name = "a.net.segmentation_head.0.weight"
    before = loop.method.ema.module.state_dict()[name].clone()
    loop.train_on(batch, loop.step)
    now = loop.method.network.state_dict()[name]
    assert not torch.equal(now, before)
    torch.testing.assert_close(loop.method.ema.module.state_dict()[name], 0.5 * before + 0.5 * now)


def test_losses_ignores_masks_of_unlabelled_slices(organ_set):
    terms = []
    for filler in (0, 3):
        loop, batch = prepare(organ_set, unreliable=0.5)
        batch.mask[2:] = filler
        loop.step = 3
        with torch_seed(0):  # of the dropout
            terms.append(loop.train_on(batch, loop.step)[0])
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


def test_losses_supervised_has_two_terms_and_no_projection(organ_set):
    pair, figures = run_step(organ_set, verification=0.0, pseudo=0.0, contrast=0.0)
    assert {name for name in figures if name.startswith("loss_")} == {
        "loss_supervised_a",
        "loss_supervised_b",
    }
    assert pair.a.projection is None


@pytest.mark.parametrize("device", DEVICES)
def test_train_on_does_not_wait_for_the_device(organ_set, device):
    train_without_waits(lambda: prepare(organ_set), device)
