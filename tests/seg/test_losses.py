"""Losses of the two sub-networks: values, gradients, absent classes and excluded pixels."""

import math

import pytest
import torch
from torch.nn import functional as F

from src.seg.losses import (
    IGNORED,
    class_prototypes,
    label_loss,
    prototype_contrast,
    pseudo_labels,
    reliable_pixels,
    verification_loss,
)

CLASSES = 6


def draw_logits(seed: int = 0, size: int = 8, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, CLASSES, size, size, generator=generator).requires_grad_()


def draw_labels(seed: int = 1, size: int = 8, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, CLASSES, (batch, size, size), generator=torch.Generator().manual_seed(seed))


def sure_of(classes: torch.Tensor, probability: float) -> torch.Tensor:
    """Probabilities (B, K, H, W) of `probability` for each pixel's class, the rest spread evenly."""
    is_class = F.one_hot(classes, CLASSES).movedim(-1, 1)
    return torch.where(is_class > 0, probability, (1 - probability) / (CLASSES - 1))


def test_label_loss_takes_logits():
    labels = draw_labels()
    right = 20.0 * F.one_hot(labels, CLASSES).movedim(-1, 1)
    assert label_loss(right, labels) < 1e-4  # a softmax taken twice stays above 1
    even = torch.zeros(2, CLASSES, 8, 8)
    dice = 1 - 2 * (labels.numel() / CLASSES) / (labels.numel() + labels.numel())
    assert label_loss(even, labels).item() == pytest.approx(math.log(CLASSES) + dice, abs=0.02)


def test_label_loss_ignores_excluded_pixels():
    logits, labels = draw_logits(), draw_labels()
    half = labels.clone()
    half[..., 4:] = IGNORED
    assert label_loss(logits, half).item() == pytest.approx(
        label_loss(logits[..., :4], labels[..., :4]).item(), rel=1e-5
    )
    label_loss(logits, half).backward()
    assert logits.grad[..., 4:].abs().max() == 0
    assert logits.grad[..., :4].abs().min() > 0


def test_label_loss_is_finite_without_organs_or_pixels():
    logits = draw_logits()
    for labels in (torch.zeros(2, 8, 8, dtype=torch.long), torch.full((2, 8, 8), IGNORED)):
        logits.grad = None
        loss = label_loss(logits, labels)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_verification_loss_counts_disputed_pixels_only():
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    mine = torch.tensor([[[1, 1, 1, 0]]])  # pixels: disputed, first unsure, other unsure, agreed
    other = torch.tensor([[[2, 2, 2, 0]]])
    sureness = torch.tensor([[[0.7, 0.5, 0.7, 0.7]]])
    other_sureness = torch.tensor([[[0.7, 0.7, 0.5, 0.7]]])
    probabilities, others = (
        torch.cat([sure_of(c[..., k : k + 1], s[..., k].item()) for k in range(4)], dim=-1)
        for c, s in ((mine, sureness), (other, other_sureness))
    )
    probabilities.requires_grad_()
    loss = verification_loss(probabilities, others, labels, confidence=0.6)
    rest = 0.3 / 5
    assert loss.item() == pytest.approx(((1 - rest) ** 2 + 0.7**2 + 4 * rest**2) / 4, rel=1e-5)
    loss.backward()
    touched = probabilities.grad.abs().sum(1)[0, 0]
    assert (touched > 0).tolist() == [True, False, False, False]
    # a step against the gradient raises the true class and lowers the wrong one
    assert probabilities.grad[0, 0, 0, 0] < 0 < probabilities.grad[0, 1, 0, 0]


def test_verification_loss_of_an_agreeing_pair_is_0_with_a_graph():
    logits = draw_logits()
    probabilities = logits.softmax(1)
    loss = verification_loss(probabilities, probabilities.detach(), draw_labels(), confidence=0.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_reliable_pixels_excludes_pixels_uncertain_in_both():
    classes = torch.zeros(1, 1, 10, dtype=torch.long)
    sure, unsure = 0.99, 0.4
    first = torch.cat([sure_of(classes[..., :8], sure), sure_of(classes[..., 8:], unsure)], dim=-1)
    second = torch.cat([sure_of(classes[..., :9], sure), sure_of(classes[..., 9:], unsure)], dim=-1)
    reliable = reliable_pixels(first, second, unreliable=0.2)
    assert reliable[0, 0].tolist() == [True] * 9 + [False]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_reliable_pixels_excludes_the_given_share(share):
    probabilities = draw_logits(size=40).detach().softmax(1)
    reliable = reliable_pixels(probabilities, probabilities, share)
    assert (~reliable).float().mean().item() == pytest.approx(share, abs=0.002)
    entropy = torch.special.entr(probabilities).sum(1)
    assert entropy[~reliable].min() > entropy[reliable].max()


def test_reliable_pixels_keeps_all_with_a_share_of_0():
    probabilities = draw_logits().detach().softmax(1)
    assert reliable_pixels(probabilities, probabilities.flip(0), 0.0).all()


def test_pseudo_labels_are_classes_of_reliable_pixels_without_graph():
    probabilities = draw_logits().softmax(1)
    reliable = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(3)) < 0.5
    taught = pseudo_labels(probabilities, reliable)
    assert not taught.requires_grad
    assert (taught[reliable] == probabilities.argmax(1)[reliable]).all()
    assert (taught[~reliable] == IGNORED).all()


def two_prototypes() -> torch.Tensor:
    """Class 1 along the first axis, class 2 along the second; the others have none."""
    prototypes = torch.zeros(CLASSES, 3)
    prototypes[1, 0] = prototypes[2, 1] = 1.0
    return prototypes


def test_class_prototypes_are_mean_directions_of_reliable_pixels():
    embedding = torch.zeros(1, 2, 1, 4)
    embedding[0, :, 0, 0] = torch.tensor([3.0, 0.0])
    embedding[0, :, 0, 1] = torch.tensor([0.0, 0.1])  # its length does not count
    embedding[0, :, 0, 2] = torch.tensor([0.0, -9.0])  # unreliable
    embedding[0, :, 0, 3] = torch.tensor([-1.0, 0.0])
    classes = torch.tensor([[[1, 1, 1, 4]]])
    reliable = torch.tensor([[[True, True, False, True]]])
    prototypes = class_prototypes(embedding, classes, reliable, CLASSES)
    assert prototypes[1].tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    assert prototypes[4].tolist() == [-1.0, 0.0]
    assert prototypes[[0, 2, 3, 5]].abs().max() == 0


def test_prototype_contrast_rises_towards_another_prototype():
    prototypes, classes, unreliable = two_prototypes(), torch.tensor([[[1]]]), torch.tensor([[[True]]])
    angles = torch.linspace(0, math.pi / 2, 5)
    losses = [
        prototype_contrast(
            torch.stack([angle.cos(), angle.sin(), torch.tensor(0.0)]).view(1, 3, 1, 1),
            classes,
            unreliable,
            prototypes,
            temperature=0.5,
        ).item()
        for angle in angles
    ]
    assert losses == sorted(losses)
    assert losses[0] == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)  # cos 1 and 0, over 0.5
    assert losses[-1] == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)


def test_prototype_contrast_skips_reliable_pixels_and_classes_without_prototype():
    embedding = torch.randn(1, 3, 1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.tensor([[[1, 1, 5]]])  # class 5 has no prototype
    unreliable = torch.tensor([[[True, False, True]]])
    prototype_contrast(embedding, classes, unreliable, two_prototypes(), temperature=0.1).backward()
    touched = embedding.grad.abs().sum(1)[0, 0]
    assert (touched > 0).tolist() == [True, False, False]


def test_prototype_contrast_without_pixels_or_prototypes_is_0_with_a_graph():
    embedding = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    classes = torch.ones(1, 2, 2, dtype=torch.long)
    none, every = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    for unreliable, prototypes in ((none, two_prototypes()), (every, torch.zeros(CLASSES, 3))):
        embedding.grad = None
        loss = prototype_contrast(embedding, classes, unreliable, prototypes, temperature=0.1)
        loss.backward()
        assert loss.item() == 0
        assert embedding.grad.abs().max() == 0


def test_prototype_contrast_equals_that_of_the_selected_pixels_alone():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(2, 5, 6, 6, generator=generator).requires_grad_()
    classes = torch.randint(0, 4, (2, 6, 6), generator=generator)  # classes 4 and 5 are absent
    unreliable = torch.rand(2, 6, 6, generator=generator) < 0.3
    unreliable |= classes == 3  # no reliable pixel
    prototypes = class_prototypes(embedding, classes, ~unreliable, CLASSES)
    directions = F.normalize(embedding, dim=1).movedim(1, -1)
    for each in range(CLASSES):
        mean = directions[~unreliable & (classes == each)].detach().sum(0)
        torch.testing.assert_close(prototypes[each], F.normalize(mean, dim=0))
    selected = unreliable & (classes < 3)
    expected = F.cross_entropy(directions[selected] @ prototypes[:3].T / 0.2, classes[selected])
    found = prototype_contrast(embedding, classes, unreliable, prototypes, temperature=0.2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, embedding)[0] for loss in (found, expected)))
