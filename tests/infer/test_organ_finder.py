"""Models that look at organs see the same from raw images as from prepared and segmented ones."""

import numpy as np
import pytest

import prepare_data
import segment
from src.core.errors import UserError
from src.infer.ensemble import Ensemble, Share
from src.infer.placement import Placement
from src.submit.bundle import check_models
from tests.helpers.infer_runs import read_report, submit, train_small
from tests.helpers.seg_files import write_pair

ORGAN_VIEWS = "--z-range organs --in-plane liver --masks each --neighbours 3"


@pytest.fixture(scope="module")
def organ_run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "organs", ORGAN_VIEWS)


@pytest.fixture(scope="module")
def plain_run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "plain")


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


def test_a_segmenter_that_nobody_needs_is_refused(tiny, plain_run, segmenter, tmp_path):
    with pytest.raises(UserError, match="none of these models looks at organs"):
        submit(tiny.raw, plain_run, tiny.sample, tmp_path, "--segmenter", segmenter)


def test_a_run_without_weight_asks_for_no_segmenter(tiny, organ_run, plain_run, segmenter, tmp_path):
    alone = submit(tiny.raw, plain_run, tiny.sample, tmp_path / "alone")
    runs, weights = [plain_run, organ_run], ("--weights", 1, 0)
    without = submit(tiny.raw, runs, tiny.sample, tmp_path / "without", *weights)
    unused = submit(tiny.raw, runs, tiny.sample, tmp_path / "unused", *weights, "--segmenter", segmenter)
    np.testing.assert_array_equal(without, alone)
    np.testing.assert_array_equal(unused, alone)
    check_models(runs, (1.0, 0.0), None)
    check_models(runs, (1.0, 0.0), segmenter)
    with pytest.raises(UserError, match="give --segmenter"):
        check_models(runs, (0.5, 0.5), None)


@pytest.mark.parametrize("weights", [(0.25, 0.75), (0.75, 0.25)])
def test_short_of_time_runs_that_look_at_no_organs_are_left_at_last(organ_run, plain_run, weights):
    ensemble = Ensemble([plain_run, organ_run], Placement.on_cpu(), weights)
    shares = ensemble.shares
    plain = shares.index(Share((2, 0)))
    assert shares[0] == Share((2, 2)) and all(ensemble.needs_organs(share) for share in shares[:plain])
    assert shares[plain:] == [Share((2, 0)), Share((1, 0), tta=False)]


def test_a_segmenter_beside_a_prepared_set_is_refused(tiny, organ_run, segmenter, tmp_path):
    with pytest.raises(UserError, match="writes its masks, leave --segmenter out"):
        submit(tiny.prepared, organ_run, tiny.sample, tmp_path, "--segmenter", segmenter)
