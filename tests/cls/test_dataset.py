"""Samples of the classifier: draws, targets, padding, packed slices."""

from dataclasses import replace

from src.cls.dataset import StackDataset
from src.cls.order import Draw
from src.cls.views import StackView
from src.data.packed import PackedSlices
from src.nn.augmentation import Augmentation
from tests.helpers.seg_files import SIZE, series_ids

VIEW = StackView(windows=("soft", "organ", "wide"), size=SIZE, crop=24, slices=4)
STILL = Augmentation(flip=0, rotate90=0, affine=0, gamma=0, dropout=0)


def test_stack_dataset_pads_with_black_and_marks_it(masked):
    view = replace(VIEW, spacing_mm=40.0)  # of a series of 55 mm
    sample = StackDataset(masked, masked.series, view)[0]
    assert sample.padding.tolist() == [False, False, True, True]
    assert sample.images[:2].any() and not sample.images[2:].any()


def test_stack_dataset_follows_from_seed_and_draw(masked):
    view = replace(VIEW, slices=5)
    fixed = StackDataset(masked, masked.series, view)
    assert all((a == b).all() for a, b in zip(fixed[1], fixed[1], strict=True))
    assert (StackDataset(masked, masked.series, view, offset=0.1)[1].images != fixed[1].images).any()

    def images(seed: int, *draw: int):
        stacks = StackDataset(masked, masked.series, view, augmentation=Augmentation(), seed=seed)
        return stacks[Draw(*draw)].images

    first, again = images(1, 2, 1), images(1, 2, 1 + len(masked.series))
    assert (first == images(1, 2, 1)).all()
    for other in (images(1, 3, 1), images(2, 2, 1), again):
        assert (other != first).any()
    assert (images(1, 2, 1 + 2 * len(masked.series)) != again).any()


def test_stack_dataset_samples_hold_labels_and_organ_maps(masked, organs, labels):
    dataset = StackDataset(
        masked, masked.series, VIEW, organs, labels=labels, with_organs=True, augmentation=STILL
    )
    for place, key in enumerate(series_ids(masked)):
        sample = dataset[place]
        assert (sample.targets.numpy() == labels.loc[key[0]].to_numpy()).all()
        assert bool(sample.has_organs) == (key in organs)
        assert sample.organs.shape == (4, 24, 24) and bool(sample.organs.any()) == (key in organs)


def test_stack_dataset_packed_slices_equal_those_of_the_png(masked, organs, tmp_path):
    view = replace(VIEW, windows=("wide", "soft"), neighbours=3)
    packed = PackedSlices(masked, view.windows, tmp_path / "cache")
    plain = StackDataset(masked, masked.series, view, organs)
    fast = StackDataset(masked, masked.series, view, organs, packed=packed)
    for _ in range(2):  # packed, then read
        for index in range(len(plain)):
            assert all((a == b).all() for a, b in zip(plain[index], fast[index], strict=True))
