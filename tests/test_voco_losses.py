"""The losses follow their formulas, stay finite, and give every pair the gradient that it needs."""

import math

import pytest
import torch
from torch import nn

from src.voco.losses import (
    base_regulariser,
    cosine_similarity,
    negative_loss,
    positive_loss,
    voco_losses,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_positive_loss_of_a_hand_worked_row():
    label, cosine = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.25, 0.9]])
    expected = -0.75 * math.log(0.75) / 1.0  # the second matches, the third is no positive
    assert positive_loss(cosine, label).item() == pytest.approx(expected, abs=1e-5)


def test_negative_loss_is_the_mean_square_over_pairs_without_overlap():
    label, cosine = torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.6, -0.8, 0.3]])
    assert negative_loss(cosine, label).item() == pytest.approx((0.36 + 0 + 0.09) / 3, abs=1e-6)
    assert negative_loss(cosine, torch.ones(1, 4)).item() == 0


def test_positive_loss_is_finite_with_finite_gradient_for_every_cosine_and_label():
    """With the bare cosine, `log(1 - |y - cos|)` is NaN wherever `y - cos > 1`."""
    label, cosine = torch.meshgrid(torch.linspace(0, 1, 21), torch.linspace(-1, 1, 41), indexing="ij")
    cosine = cosine.clone().requires_grad_()
    loss = positive_loss(cosine, label)
    loss.backward()
    assert loss.isfinite() and loss > 0
    assert cosine.grad.isfinite().all()
    assert torch.log(1 - (label - cosine.detach()).abs() + 1e-6).isnan().any()  # the form that is avoided


def test_a_positive_with_negative_cosine_is_pulled_up_by_its_overlap():
    """A clamp to 0..1 alone gives such a pair no gradient: it would stay lost."""
    label = torch.tensor([[0.6, 0.4, 0.0]])
    cosine = torch.tensor([[-0.5, 0.3, -0.5]], requires_grad=True)
    positive_loss(cosine, label).backward()
    assert cosine.grad[0, 0].item() == pytest.approx(-0.6, abs=1e-5)  # -y / sum(y)
    assert cosine.grad[0, 1] < 0  # below its label: pulled up
    assert cosine.grad[0, 2] == 0  # a negative that is already apart


def test_positive_loss_is_continuous_where_the_cosine_changes_sign():
    label = torch.tensor([[0.5]])
    below, above = (positive_loss(torch.tensor([[value]]), label) for value in (-1e-6, 1e-6))
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


def test_each_volume_is_compared_with_the_bases_of_the_next():
    student, teacher, label = draw(3, 2 + 4, 16), draw(3, 2 + 4, 16, seed=1), torch.rand(3, 2, 4).softmax(-1)
    losses = voco_losses(student, teacher, label)
    for volume, following in ((0, 1), (1, 2), (2, 0)):
        target = cosine_similarity(teacher[volume, :2], teacher[following, 2:]).relu()
        predicted = cosine_similarity(student[volume, :2], student[following, 2:])
        torch.testing.assert_close(losses.inter_positive[volume], positive_loss(predicted, target))
        torch.testing.assert_close(losses.inter_negative[volume], negative_loss(predicted, target))


def test_inter_volume_targets_have_both_positives_and_negatives():
    """Without the relu no target is ever exactly 0, and the negative term is empty."""
    student, teacher = draw(4, 2 + 9, 32), draw(4, 2 + 9, 32, seed=1)
    losses = voco_losses(student, teacher, torch.full((4, 2, 9), 1 / 9))
    assert (losses.inter_negative > 0).all() and (losses.inter_positive > 0).all()


def test_no_gradient_reaches_the_teacher_and_all_of_the_student_gets_one():
    student, teacher = draw(3, 2 + 4, 16).requires_grad_(), draw(3, 2 + 4, 16, seed=1).requires_grad_()
    voco_losses(student, teacher, torch.rand(3, 2, 4)).total.mean().backward()
    assert teacher.grad is None
    assert (student.grad.norm(dim=-1) > 0).all()


def test_losses_of_a_volume_do_not_depend_on_the_rest_of_the_batch_but_for_its_pair():
    student, teacher, label = draw(4, 2 + 4, 16), draw(4, 2 + 4, 16, seed=1), torch.rand(4, 2, 4)
    whole, part = (voco_losses(student[:n], teacher[:n], label[:n]) for n in (4, 3))
    for name in whole._fields:
        torch.testing.assert_close(getattr(whole, name)[:2], getattr(part, name)[:2])


def test_one_volume_has_no_other_to_be_compared_with():
    with pytest.raises(ValueError, match="two volumes"):
        voco_losses(draw(1, 6, 8), draw(1, 6, 8), torch.rand(1, 2, 4))


def test_half_precision_embeddings_give_float32_losses():
    linear = nn.Linear(8, 8).bfloat16()
    embeddings = linear(draw(2, 6, 8).bfloat16())
    losses = voco_losses(embeddings, embeddings.detach(), torch.rand(2, 2, 4))
    assert all(term.dtype == torch.float32 and term.isfinite().all() for term in losses)
