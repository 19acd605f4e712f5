"""Models that use organ masks predict the same from raw images as from prepared and segmented ones."""

import numpy as np
import pytest

import prepare_data
import segment
from src.core.errors import UserError
from src.infer.ensemble import Ensemble
from src.submit.bundle import check_models
from tests.helpers.infer_runs import read_report, submit, train_small
from tests.helpers.seg_files import write_pair

ORGAN_VIEWS = "--z-range organs --in-plane liver --masks each --neighbours 3"


@pytest.fixture(scope="module")
def organ_run(tiny, tmp_path_factory):
    return train_small(tiny, tmp_path_factory.mktemp("models") / "organs", ORGAN_VIEWS)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Arbitrary blobs of all organs, from windows in another order than the classifier's."""
    return write_pair(tmp_path_factory.mktemp("seg"), windows=("organ", "soft"), slices=3, size=48)


def test_infer_predicts_the_same_from_raw_and_from_segmented_images(tiny, organ_run, segmenter, tmp_path):
    prepared = tmp_path / "prepared"
    prepare_data.main(f"--input {tiny.raw} --split test --output {prepared} --size 48 --jobs 1".split())
    segment.main(f"--model {segmenter} --data {prepared} --workers 0".split())
    raw = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "raw", "--segmenter", segmenter)
    same = submit(prepared, organ_run, tiny.sample, tmp_path / "same")
    np.testing.assert_allclose(raw, same, atol=1e-6)
    assert set(read_report(tmp_path / "raw").status) == {"ok"}


def test_infer_uses_the_masks_of_the_segmenter(tiny, organ_run, segmenter, tmp_path, capsys):
    other = write_pair(tmp_path / "other", seed=14, windows=("organ", "soft"), slices=3, size=48)
    one = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "one", "--segmenter", segmenter)
    two = submit(tiny.raw, organ_run, tiny.sample, tmp_path / "two", "--segmenter", other)
    for name in ("one", "two"):
        assert set(read_report(tmp_path / name).status) == {"ok"}
    assert np.abs(one - two).to_numpy().max() > 1e-4  # 0.03
    assert capsys.readouterr().err.count("trained with true masks get predicted ones") == 2


def test_infer_needs_no_segmenter_for_a_run_of_weight_0(tiny, organ_run, tiny_run, segmenter, tmp_path):
    alone = submit(tiny.raw, tiny_run, tiny.sample, tmp_path / "alone")
    runs, weights = [tiny_run, organ_run], ("--weights", 1, 0)
    without = submit(tiny.raw, runs, tiny.sample, tmp_path / "without", *weights)
    unused = submit(tiny.raw, runs, tiny.sample, tmp_path / "unused", *weights, "--segmenter", segmenter)
    np.testing.assert_array_equal(without, alone)
    np.testing.assert_array_equal(unused, alone)
    check_models(runs, (1.0, 0.0), None)
    check_models(runs, (1.0, 0.0), segmenter)
    with pytest.raises(UserError, match="give --segmenter"):
        check_models(runs, (0.5, 0.5), None)


def test_ensemble_reduced_subset_excludes_runs_that_need_organs(organ_run, tiny_run):
    full, reduced = Ensemble([tiny_run, organ_run], (0.25, 0.75)).subsets
    assert (full.fold_counts, full.needs_organs) == ((2, 2), True)
    assert (reduced.fold_counts, reduced.needs_organs) == ((1, 0), False)
    full, reduced = Ensemble([organ_run]).subsets
    assert (reduced.fold_counts, reduced.needs_organs) == ((1,), True)


@pytest.mark.parametrize(
    ("source", "run", "found_by", "message"),
    [
        ("raw", "organ_run", None, "give --segmenter"),
        ("raw", "organ_run", "larger", "slices of 64 px, the models on 48 px"),
        ("raw", "tiny_run", "segmenter", "none of these models uses organ masks"),
        ("prepared", "organ_run", "segmenter", "writes its masks, leave --segmenter out"),
    ],
)
def test_infer_refuses_a_segmenter_that_does_not_fit(request, tiny, tmp_path, source, run, found_by, message):
    if found_by == "larger":
        found_by = write_pair(tmp_path / "seg", size=64)
    elif found_by:
        found_by = request.getfixturevalue(found_by)
    more = ("--segmenter", found_by) if found_by else ()
    with pytest.raises(UserError, match=message):
        submit(getattr(tiny, source), request.getfixturevalue(run), tiny.sample, tmp_path, *more)
    assert not (tmp_path / "submission.csv").exists()
