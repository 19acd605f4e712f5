"""A step of the two sub-networks: which term teaches whom."""

import math

import pytest
import torch

from src.core.runtime import Runtime, torch_seed
from src.seg import step as step_module
from src.seg import unlabelled
from src.seg.dataset import SliceBatch, SliceDataset, SliceOrder
from src.seg.losses import pseudo_labels
from src.seg.split import open_data
from src.seg.state import TrainingState, build_state, describe_pair
from src.seg.step import take_step
from tests.helpers.seg_runs import make_options, write_organ_set


@pytest.fixture(scope="module")
def organ_set(tmp_path_factory):
    return write_organ_set(tmp_path_factory.mktemp("organs") / "set")


def prepare(organ_set, **changes):
    """State, one batch, options and runtime of a run."""
    options = make_options(organ_set, organ_set / "unused", **changes)
    data = open_data(options)
    runtime = Runtime.create("fp32")
    state, _, _ = build_state(options, describe_pair(options, data.size), runtime)
    state.pair, state.optimizer = runtime.prepare(state.pair, state.optimizer)
    dataset = SliceDataset(data, options)
    keys = SliceOrder(options, 0).share(0)
    batch = SliceBatch(*map(torch.stack, zip(*[dataset[key] for key in keys], strict=True)))
    return state, batch, options, runtime


def run_step(organ_set, done=0.9, **changes):
    """A step towards the end of a run, when the ramp is nearly up; the gradients stay."""
    state, batch, options, runtime = prepare(organ_set, **changes)
    state.step = int(done * options.steps)
    result = take_step(state, batch, options, runtime)
    return state, result


def gradients(net: torch.nn.Module) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters() if p.grad is not None))


def test_every_term_is_reported_with_its_weight_and_the_loss_is_finite(organ_set):
    state, result = run_step(organ_set, unreliable=0.9, steps=10, done=0.5)
    assert set(result.terms) == {"supervised_a", "supervised_b", "verification", "pseudo", "contrast"}
    assert result.is_finite
    assert all(term.item() >= 0 and not term.requires_grad for term in result.terms.values())
    assert all(result.terms[name] > 0 for name in ("supervised_a", "pseudo", "contrast"))
    assert gradients(state.pair.a) > 0 and gradients(state.pair.b) > 0


@pytest.mark.parametrize(("better", "student"), [("a", "b"), ("b", "a")])
def test_pseudo_labels_teach_the_sub_network_that_errs_more_on_the_labels(
    organ_set, monkeypatch, better, student
):
    only_pseudo(monkeypatch, errors={"a": 0.5 + (better == "b"), "b": 0.5 + (better == "a")})
    state, result = run_step(organ_set, contrast=0.0, verification=0.0, steps=10)
    assert result.terms["pseudo"] > 0
    assert gradients(getattr(state.pair, student)) > 1e-3
    assert gradients(getattr(state.pair, better)) == 0


def only_pseudo(monkeypatch, errors):
    """Replace the supervised losses of A and B by constants without a gradient."""
    names = iter("ab")
    monkeypatch.setattr(
        step_module, "label_loss", lambda logits, labels: logits.sum() * 0.0 + errors[next(names)]
    )


def test_the_contrast_alone_moves_encoders_decoders_and_projections_of_both(organ_set, monkeypatch):
    only_pseudo(monkeypatch, errors={"a": 1.0, "b": 1.0})
    state, result = run_step(organ_set, pseudo=0.0, verification=0.0, unreliable=0.9, steps=10, done=0.5)
    assert result.terms["contrast"] > 0
    for net in (state.pair.a, state.pair.b):
        for part in (net.net.encoder, net.net.decoder, net.projection):
            assert gradients(part) > 1e-6
        assert gradients(net.net.segmentation_head) == 0  # its own term does not see the logits


def test_verification_alone_moves_both(organ_set, monkeypatch):
    only_pseudo(monkeypatch, errors={"a": 1.0, "b": 1.0})
    state, result = run_step(organ_set, pseudo=0.0, contrast=0.0, confidence=0.0)
    assert result.terms["verification"] > 0
    assert gradients(state.pair.a) > 1e-3 and gradients(state.pair.b) > 1e-3


def test_what_is_taught_comes_from_the_averaged_weights_on_the_unchanged_slices(organ_set):
    """Whatever the appearance of the views and the weights of the moment: the student's target stays."""
    targets = []

    def keep(*given):
        targets.append(pseudo_labels(*given))
        return targets[-1]

    for change in ("nothing", "views", "weights"):
        state, batch, options, runtime = prepare(organ_set, contrast=0.0, verification=0.0, steps=10)
        state.step = 9
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unlabelled, "pseudo_labels", keep)
            if change == "views":
                batch.strong[2:] = 255 - batch.strong[2:]
            if change == "weights":
                with torch.no_grad():
                    runtime.unwrap(state.pair).a.net.segmentation_head[0].bias += 5.0
                    runtime.unwrap(state.pair).b.net.segmentation_head[0].bias += 5.0
            with torch_seed(0):
                take_step(state, batch, options, runtime)
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])


def test_unlabelled_terms_rise_by_the_ramp(organ_set):
    terms = []
    for done in (0.0, 0.5, 0.9):
        with torch_seed(0):
            terms.append(run_step(organ_set, done=done, steps=10)[1].terms["pseudo"].item())
    # the same weights and the same batch: the weight is the only difference besides the reliable share
    assert terms[0] < 0.02 * terms[2]
    assert terms[0] < terms[1] < terms[2]


def test_the_average_of_the_weights_follows_a_step(organ_set):
    state, batch, options, runtime = prepare(organ_set, ema_decay=0.5, steps=2000)
    state.step = 1000  # timm's warm-up of the decay is over
    name = "a.net.segmentation_head.0.weight"
    before = state.ema.module.state_dict()[name].clone()
    take_step(state, batch, options, runtime)
    now = runtime.unwrap(state.pair).state_dict()[name]
    assert not torch.equal(now, before)
    torch.testing.assert_close(state.ema.module.state_dict()[name], 0.5 * before + 0.5 * now)


def test_labels_of_unlabelled_slices_are_never_looked_at(organ_set):
    terms = []
    for filler in (0, 3):
        state, batch, options, runtime = prepare(organ_set, unreliable=0.5)
        batch.mask[2:] = filler
        state.step = 3
        with torch_seed(0):  # of the dropout
            terms.append(take_step(state, batch, options, runtime).terms)
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


def test_supervised_reads_no_unlabelled_slice_and_has_two_terms(organ_set):
    state, result = run_step(organ_set, verification=0.0, pseudo=0.0, contrast=0.0)
    assert set(result.terms) == {"supervised_a", "supervised_b"}
    assert state.pair.a.projection is None


def test_what_is_not_finite_is_told(organ_set):
    state, batch, options, runtime = prepare(organ_set)
    with torch.no_grad():
        state.pair.b.net.segmentation_head[0].weight.fill_(float("nan"))
    assert not take_step(state, batch, options, runtime).is_finite
    assert isinstance(state, TrainingState)
