"""MixUp and CutMix: images, labels and organ maps are mixed by the same share."""

import numpy as np
import pytest
import torch

from src.cls.dataset import StackBatch
from src.cls.stack_mixing import StackMixer

EQUAL = torch.ones(4)


def batch() -> StackBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 2, 16, 16)
    return StackBatch(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.tensor([[False] * 3, [False, True, True], [False] * 3, [False, False, True]]),
        torch.eye(4, 14),
        torch.rand(4, 3, 8, generator=generator),
        torch.randint(0, 5, (4, 3, 16, 16), dtype=torch.uint8, generator=generator),
        torch.tensor([True, True, False, True]),
    )


def test_stack_mixer_without_probabilities_mixes_nothing():
    given = batch()
    mixed, importance = StackMixer(0.0, 0.0)(given, EQUAL, np.random.default_rng(0))
    assert mixed is given and importance is EQUAL


@pytest.mark.parametrize("seed", range(5))
def test_stack_mixer_mixup_adds_up_images_and_labels(seed):
    given = batch()
    mixed, _ = StackMixer(1.0, 0.0)(given, EQUAL, np.random.default_rng(seed))
    shares = mixed.targets[:, :4]  # of each of the four, by their one-hot labels
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    expected = torch.einsum("bs,stchw->btchw", shares, given.images.float())
    torch.testing.assert_close(mixed.images, expected)
    torch.testing.assert_close(mixed.slice_targets, torch.einsum("bs,stk->btk", shares, given.slice_targets))
    assert not mixed.has_organs.any()


@pytest.mark.parametrize("seed", range(5))
def test_stack_mixer_cutmix_weighs_labels_by_area_and_cuts_organ_maps(seed):
    given = batch()
    mixed, _ = StackMixer(0.0, 1.0)(given, EQUAL, np.random.default_rng(seed))
    assert mixed.images.dtype == torch.uint8
    for place, share in enumerate(mixed.targets[:, :4]):
        own = float(share[place])
        other = int((share * (torch.arange(4) != place)).argmax())
        is_own = (mixed.images[place] == given.images[place]).all(dim=0).all(dim=0)
        assert is_own.float().mean() == pytest.approx(own, abs=0.02)
        assert torch.equal(mixed.images[place][..., ~is_own], given.images[other][..., ~is_own])
        assert torch.equal(mixed.organs[place][..., ~is_own], given.organs[other][..., ~is_own])
        assert bool(mixed.has_organs[place]) == bool(given.has_organs[place] & given.has_organs[other])


@pytest.mark.parametrize("mixer", [StackMixer(1.0, 0.0), StackMixer(0.0, 1.0)])
def test_stack_mixer_mixes_no_stack_with_itself(mixer):
    for seed in range(20):
        mixed, _ = mixer(batch(), EQUAL, np.random.default_rng(seed))
        assert (mixed.targets.diagonal()[:4] < 1).all()


def test_stack_mixer_padding_is_that_of_the_longer_stack():
    given = batch()
    mixed, _ = StackMixer(1.0, 0.0)(given, EQUAL, np.random.default_rng(3))
    for place, share in enumerate(mixed.targets[:, :4]):
        sources = [source for source in range(4) if share[source] > 0]
        assert torch.equal(mixed.padding[place], given.padding[sources].all(dim=0))


def test_stack_mixer_draws_follow_the_generator():
    first, second = (StackMixer(0.5, 0.5)(batch(), EQUAL, np.random.default_rng(7))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mixer", [StackMixer(1.0, 0.0), StackMixer(0.0, 1.0)])
def test_stack_mixer_keeps_the_importance_of_patients(mixer):
    """The loss of a mixture is the sum of what its patients' shares would count alone."""
    given, importance = batch(), torch.tensor([1.0, 0.2, 3.0, 0.5])
    for seed in range(5):
        plain, _ = mixer(given, EQUAL, np.random.default_rng(seed))
        mixed, counts = mixer(given, importance, np.random.default_rng(seed))
        shares = plain.targets[:, :4]  # of the images
        torch.testing.assert_close(counts, shares @ importance)
        torch.testing.assert_close(counts[:, None] * mixed.targets[:, :4], shares * importance)
        torch.testing.assert_close(mixed.images, plain.images)
