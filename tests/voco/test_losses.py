"""The losses follow their formulas, stay finite, and give every pair the gradient that it needs."""

import math

import pytest
import torch

from src.voco.losses import (
    EPSILON,
    base_regulariser,
    cosine_similarity,
    log_negatives,
    placing_loss,
    positive_loss,
    squared_negatives,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_positive_loss_of_a_hand_worked_row():
    label, cosine = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.25, 0.9]])
    expected = -0.75 * math.log(0.75) / 1.0  # the second matches, the third is no positive
    assert positive_loss(label, cosine).item() == pytest.approx(expected, abs=1e-5)


def test_negative_loss_is_the_mean_square_over_pairs_without_overlap():
    label, cosine = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.6, -0.8, 0.3]])
    assert squared_negatives(label, cosine).item() == pytest.approx((0.36 + 0 + 0.09) / 3, abs=1e-6)
    assert squared_negatives(torch.ones(1, 4), cosine).item() == 0


def test_positive_loss_is_finite_with_finite_gradient_for_every_cosine_and_label():
    """With the bare cosine, `log(1 - |y - cos|)` is NaN wherever `y - cos > 1`."""
    label, cosine = torch.meshgrid(torch.linspace(0, 1, 21), torch.linspace(-1, 1, 41), indexing="ij")
    cosine = cosine.clone().requires_grad_()
    loss = positive_loss(label, cosine)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert cosine.grad.isfinite().all()
    assert torch.log(1 - (label - cosine.detach()).abs() + 1e-6).isnan().any()  # the form that is avoided


def test_a_positive_with_negative_cosine_is_pulled_up_by_its_overlap():
    """A clamp to 0..1 alone gives such a pair no gradient: it would stay lost."""
    label = torch.tensor([[0.6, 0.4, 0.0]])
    cosine = torch.tensor([[-0.5, 0.3, -0.5]], requires_grad=True)
    positive_loss(label, cosine).backward()
    assert cosine.grad[0, 0].item() == pytest.approx(-0.6, abs=1e-5)  # -y / sum(y)
    assert cosine.grad[0, 1] < 0  # below its label: pulled up
    assert cosine.grad[0, 2] == 0  # a negative that is already apart


def test_positive_loss_is_continuous_where_the_cosine_changes_sign():
    label = torch.tensor([[0.5]])
    below, above = (positive_loss(label, torch.tensor([[value]])) for value in (-1e-6, 1e-6))
    assert below.item() == pytest.approx(above.item(), abs=1e-5)


def test_the_regulariser_pushes_every_base_the_last_one_too():
    """Summed over i < j with the second of a pair fixed, the last base has no gradient."""
    bases = draw(1, 5, 8).abs().requires_grad_()
    base_regulariser(bases).sum().backward()
    assert (bases.grad.norm(dim=-1) > 1e-3).all()


def test_the_regulariser_is_the_mean_over_unordered_pairs():
    bases = draw(2, 4, 6)
    cosine = cosine_similarity(bases, bases)
    pairs = [cosine[:, i, j].relu() ** 2 for i in range(4) for j in range(i + 1, 4)]
    torch.testing.assert_close(base_regulariser(bases), torch.stack(pairs).mean(0))
    assert base_regulariser(torch.eye(4)).item() == 0


def test_two_directions_predict_by_their_mean():
    label = torch.tensor([[0.5, 0.5, 0.0]])
    first, second = torch.tensor([[0.8, 0.5, 0.4]]), torch.tensor([[0.4, 0.5, -0.9]])
    expected = -0.5 * math.log(1 - abs(0.5 - 0.6))
    assert positive_loss(label, first, second).item() == pytest.approx(expected, abs=1e-5)
    assert squared_negatives(label, first, second).item() == pytest.approx(0.2**2)


def test_two_directions_pull_up_the_one_that_is_opposed():
    label = torch.tensor([[1.0]])
    cosines = [torch.tensor([[value]], requires_grad=True) for value in (0.3, -0.3)]
    positive_loss(label, *cosines).backward()
    assert all(cosine.grad.item() < 0 for cosine in cosines)


def test_log_negatives_are_the_large_scale_form_and_stay_finite_at_one():
    label, cosine = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.2, 0.5, -0.5]])
    assert log_negatives(label, cosine).item() == pytest.approx(-math.log(0.5) / 2, abs=1e-5)
    assert log_negatives(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(
        -math.log(EPSILON), rel=0.02
    )


def test_placing_loss_is_the_cross_entropy_between_label_and_softmax():
    label, cosine = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.6, 0.4]])
    odds = math.exp(0.2 / 0.1)
    expected = -0.75 * math.log(odds / (1 + odds)) - 0.25 * math.log(1 / (1 + odds))
    assert placing_loss(label, cosine, temperature=0.1).item() == pytest.approx(expected, abs=1e-5)


def test_placing_loss_is_least_where_the_softmax_equals_the_label():
    label = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
    best = placing_loss(label, 0.1 * label.log(), temperature=0.1)
    entropy = -(label * label.log()).sum(-1).mean()
    torch.testing.assert_close(best, entropy)
    assert placing_loss(label, 0.1 * label.log() + 0.02 * draw(3, 5), temperature=0.1) > best


def test_placing_loss_over_planes_does_not_ask_for_the_height():
    """Probability may lie in either plane; in-plane it must lie right."""
    label = torch.tensor([[1.0, 0.0, 0.0, 0.0]])  # two planes of two bases
    right, wrong = torch.tensor([[-1.0, -1.0, 1.0, -1.0]]), torch.tensor([[-1.0, 1.0, -1.0, -1.0]])
    assert placing_loss(label, right, temperature=0.1, planes=2).item() == pytest.approx(0, abs=1e-6)
    assert placing_loss(label, right, temperature=0.1).item() > 10
    assert placing_loss(label, wrong, temperature=0.1, planes=2).item() > 10


@pytest.mark.parametrize(
    "loss", [positive_loss, squared_negatives, log_negatives], ids=lambda loss: loss.__name__
)
def test_half_precision_cosines_give_float32_losses(loss):
    label, cosine = torch.rand(2, 2, 4), torch.rand(2, 2, 4).bfloat16()
    assert loss(label, cosine).dtype == torch.float32
    assert placing_loss(label, cosine, temperature=0.1).dtype == torch.float32
