"""Rectangles pasted into unlabelled slices, and the targets that go with them."""

import pytest
import torch

from src.core.runtime import torch_seed
from src.seg.losses import reliable_pixels
from src.seg.model import CLASSES, SliceOutput
from src.seg.unlabelled import (
    PATCH_AREA,
    MixedBatch,
    Patch,
    draw_patches,
    mix_unlabelled,
    paste,
    unlabelled_terms,
)
from tests.helpers.seg_runs import make_options

SHAPE = (40, 60)


def draw(probability: float = 1.0, batch: int = 8, labelled: int = 3, seeds: int = 60) -> list[Patch]:
    patches = []
    for seed in range(seeds):
        with torch_seed(seed):
            patches += draw_patches(batch, labelled, SHAPE, probability)
    return patches


def test_draw_patches_targets_unlabelled_slices_and_copies_from_any_other():
    patches = draw()
    assert {patch.target for patch in patches} == {3, 4, 5, 6, 7}
    assert {patch.source for patch in patches} == set(range(8))
    assert all(patch.source != patch.target for patch in patches)
    for patch in patches:
        height, width = (span.stop - span.start for span in (patch.rows, patch.columns))
        assert patch.rows.start >= 0 and patch.rows.stop <= SHAPE[0]
        assert patch.columns.start >= 0 and patch.columns.stop <= SHAPE[1]
        share = height * width / (SHAPE[0] * SHAPE[1])
        assert PATCH_AREA[0] - 0.02 < share < PATCH_AREA[1] + 0.02


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_draw_patches_keeps_the_probability_and_repeats_with_the_seed(probability):
    expected = probability * 5 * 60 * 7 / 8  # one in eight draws is the slice itself
    assert len(draw(probability)) == pytest.approx(expected, rel=0.15)
    assert draw(probability, seeds=3) == draw(probability, seeds=3)


def test_paste_copies_from_the_batch_as_it_was():
    rows = torch.arange(8).view(8, 1, 1).expand(8, *SHAPE).clone()
    patches = [
        Patch(5, 1, slice(0, 10), slice(0, 10)),
        Patch(6, 5, slice(5, 20), slice(5, 20)),  # of slice 5 before its own rectangle
    ]
    pasted = paste(rows, patches)
    assert (pasted[5, :10, :10] == 1).all() and (pasted[5, 10:] == 5).all()
    assert (pasted[6, 5:20, 5:20] == 5).all() and (pasted[6, 20:] == 6).all()
    assert torch.equal(pasted[:5], rows[:5]) and torch.equal(rows[5], torch.full(SHAPE, 5))


class GreyPair(torch.nn.Module):
    """Predicts for each pixel the class of its grey level."""

    def forward(self, images_a, images_b):
        logits = torch.nn.functional.one_hot(images_a[..., 0].long(), CLASSES).movedim(-1, 1) * 50.0
        return SliceOutput(logits, None), SliceOutput(logits, None)


def test_mix_unlabelled_pastes_the_same_rectangle_into_slices_and_targets():
    labels = torch.full((2, *SHAPE), 1)
    weak = torch.stack([torch.full((*SHAPE, 1), grey, dtype=torch.uint8) for grey in (2, 3, 4)])
    strong = torch.cat([torch.ones(2, *SHAPE, 1, dtype=torch.uint8), weak])[:, None].expand(5, 2, *SHAPE, 1)
    mixed_slices = 0
    for seed in range(10):
        with torch_seed(seed):
            mixed = mix_unlabelled(GreyPair(), strong, weak, labels, probability=1.0)
        assert torch.equal(mixed.strong[:2], strong[:2])  # labelled slices stay as they are
        for target in mixed.targets:
            assert torch.equal(target.argmax(1), mixed.strong[2:, 0, ..., 0].long())
            assert torch.equal(target.argmax(1), mixed.strong[2:, 1, ..., 0].long())
        mixed_slices += sum(len(slice_.unique()) == 2 for slice_ in mixed.strong[2:, 0])
    assert mixed_slices > 15
    unmixed = mix_unlabelled(GreyPair(), strong, weak, labels, probability=0.0)
    assert torch.equal(unmixed.strong, strong)


@pytest.mark.parametrize("teacher", [0, 1])
def test_unlabelled_terms_teach_one_sub_network_by_the_other(teacher):
    generator = torch.Generator().manual_seed(teacher)
    logits = [torch.randn(5, CLASSES, *SHAPE, generator=generator).requires_grad_() for _ in "ab"]
    targets = tuple(torch.randn(3, CLASSES, *SHAPE, generator=generator).softmax(1) for _ in "ab")
    labels = torch.zeros(2, *SHAPE, dtype=torch.long)
    options = make_options("data", "run", contrast=0.0, unreliable=0.5, steps=10, ramp=0.5)
    terms, shares = unlabelled_terms(
        tuple(map(SliceOutput, logits)),
        MixedBatch(torch.empty(0), targets),
        labels,
        torch.tensor(teacher == 0),
        9,
        options,
    )
    taught = targets[teacher].argmax(1)
    reliable = reliable_pixels(*targets, 0.05)  # the share falls from 0.5 to 0
    learning = logits[1 - teacher][2:].movedim(1, -1)
    expected = torch.nn.functional.cross_entropy(learning[reliable], taught[reliable])
    torch.testing.assert_close(terms["pseudo"], expected)  # the ramp is over
    gradient, expected = (
        torch.autograd.grad(loss, logits, allow_unused=True) for loss in (terms["pseudo"], expected)
    )
    torch.testing.assert_close(gradient[1 - teacher], expected[1 - teacher])
    assert gradient[teacher].abs().max() == 0
    assert shares["organ"] == (taught > 0).float().mean()
