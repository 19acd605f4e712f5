"""Models that look at organs see the same from raw images as from prepared and segmented ones."""

import numpy as np
import pytest
from infer_runs import read_report, submit, train_small
from seg_files import write_pair

import prepare_data
import segment
from src.core.errors import UserError

ORGAN_VIEWS = "--z-range organs --in-plane liver --masks each --neighbours 3"


@pytest.fixture(scope="module")
def organ_run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "organs", ORGAN_VIEWS)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Arbitrary blobs of all organs, from windows in another order than the classifier's."""
    return write_pair(tmp_path_factory.mktemp("seg"), windows=("organ", "soft"), slices=3, size=48)


def test_raw_images_with_a_segmenter_equal_prepared_and_segmented_ones(tiny, organ_run, segmenter, tmp_path):
    prepared = tmp_path / "prepared"
    prepare_data.main(f"--input {tiny.raw} --split test --output {prepared} --size 48 --jobs 1".split())
    segment.main(f"--model {segmenter} --data {prepared} --workers 0".split())
    raw = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "raw", "--segmenter", segmenter)
    same = submit(prepared, organ_run, tiny.sample, tmp_path / "same")
    np.testing.assert_allclose(raw, same, atol=1e-6)
    assert set(read_report(tmp_path / "raw").status) == {"ok"}


def test_the_masks_of_another_segmenter_change_the_prediction(tiny, organ_run, segmenter, tmp_path):
    other = write_pair(tmp_path / "other", seed=14, windows=("organ", "soft"), slices=3, size=48)
    one = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "one", "--segmenter", segmenter)
    two = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "two", "--segmenter", other)
    assert np.abs(one - two).to_numpy().max() > 1e-4


def test_models_that_were_shown_true_masks_are_warned_of(tiny, organ_run, segmenter, tmp_path, capsys):
    submit(tiny.raw, organ_run, tiny.sample, tmp_path, "--segmenter", segmenter)
    assert "trained with true masks are shown predicted ones" in capsys.readouterr().err


def test_raw_images_without_a_segmenter_are_refused(tiny, organ_run, tmp_path):
    with pytest.raises(UserError, match="give --segmenter"):
        submit(tiny.raw, organ_run, tiny.sample, tmp_path)
    assert not (tmp_path / "submission.csv").exists()


def test_a_segmenter_of_another_size_is_refused(tiny, organ_run, tmp_path):
    other = write_pair(tmp_path / "seg", size=64)
    with pytest.raises(UserError, match="slices of 64 px, the models on 48 px"):
        submit(tiny.raw, organ_run, tiny.sample, tmp_path, "--segmenter", other)


def test_a_segmenter_that_nobody_needs_is_refused(tiny, segmenter, tmp_path):
    plain = train_small(tiny, tmp_path / "plain")
    with pytest.raises(UserError, match="none of these models looks at organs"):
        submit(tiny.raw, plain, tiny.sample, tmp_path, "--segmenter", segmenter)


def test_a_segmenter_beside_a_prepared_set_is_refused(tiny, organ_run, segmenter, tmp_path):
    with pytest.raises(UserError, match="writes its masks, leave --segmenter out"):
        submit(tiny.prepared, organ_run, tiny.sample, tmp_path, "--segmenter", segmenter)
