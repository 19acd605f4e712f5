"""Augmentation: one draw a stack, the same for the same generator, a new one for every sample and epoch."""

import numpy as np
import pytest

from src.core.runtime import sample_rng
from src.nn.augmentation import Augmentation, StackAugmenter, centre_crop

SWITCHES = ("flip", "rotate90", "affine", "gamma", "dropout")
OFF = dict.fromkeys(SWITCHES, 0.0)


def stack(slices: int = 6) -> np.ndarray:
    one = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return np.repeat(one[None], slices, axis=0)


@pytest.mark.parametrize("switch", SWITCHES)
def test_stack_augmenter_draws_every_change_once_per_stack(switch):
    augment = StackAugmenter(32, Augmentation(**{**OFF, switch: 1.0}))
    changed = augment(stack(), sample_rng(0, 0, 0))[0]
    assert changed.shape == (6, 32, 32, 3) and changed.dtype == np.uint8
    assert (changed == changed[:1]).all()


@pytest.mark.parametrize("switch", SWITCHES)
def test_stack_augmenter_applies_every_switch(switch):
    plain = StackAugmenter(40, Augmentation(**OFF))(stack(), sample_rng(0, 0, 0))[0]
    augment = StackAugmenter(40, Augmentation(**{**OFF, switch: 1.0}))
    assert any((augment(stack(), sample_rng(0, 0, index))[0] != plain).any() for index in range(4))


def test_stack_augmenter_draws_follow_from_seed_epoch_and_index():
    first, second = StackAugmenter(32, Augmentation()), StackAugmenter(32, Augmentation())
    second(stack(), sample_rng(5, 5, 5))  # earlier draws must not matter
    keys = ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0))
    results = [first(stack(), sample_rng(*key))[0] for key in keys]
    for key, result in zip(keys, results, strict=True):
        assert (second(stack(), sample_rng(*key))[0] == result).all()
    assert all((results[0] != other).any() for other in results[1:])


def test_stack_augmenter_moves_label_maps_with_the_images():
    images = np.zeros((6, 40, 40, 1), np.uint8)
    images[:, 5:20, 8:30] = 200
    maps = np.where(images[..., 0] > 0, np.uint8(3), np.uint8(0))
    augment = StackAugmenter(36, Augmentation(gamma=0, dropout=0, flip=0.5, rotate90=0.5, affine=1.0))
    for index in range(6):
        changed, moved = augment(images, sample_rng(0, 0, index), maps)
        assert moved.shape == (6, 36, 36) and set(np.unique(moved)) == {0, 3}
        # the rim of a turned image is a mixture
        assert ((changed[..., 0] > 100) == (moved == 3)).mean() > 0.97


def test_centre_crop_takes_the_middle():
    assert (centre_crop(stack(), 20) == stack()[:, 10:30, 10:30]).all()
