"""infer.py joins series, folds and runs as the fit of post-processing joined the out-of-fold tables."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import COLUMNS, INJURIES, TARGETS
from src.infer import ensemble as ensembles
from src.infer.ensemble import Ensemble
from src.infer.organ_finder import ForwardSettings
from src.infer.results import Results
from src.infer.stack_sources import LoadedSeries, open_source
from src.score.metric import normalise
from src.score.postprocess import PatientRows, PostProcessing
from src.score.prior import weight_aware_prior
from tests.helpers.infer_runs import read_series, submit
from tests.helpers.score_frames import draw_labels, draw_predictions

LABELS = draw_labels(30)
PRIOR = weight_aware_prior(LABELS)
RUNS = {
    "all": tuple(TARGETS),
    "liver": ("liver",),
    "most": ("extravasation", "kidney", "liver", "spleen"),
    "spleen": ("spleen",),
}
"""The targets that each run predicts."""


@dataclass
class FakeMember:
    """A member of known predictions, of the series that `stacks` names."""

    run: int
    fold: int
    targets: tuple[str, ...]
    table: pd.DataFrame
    passes = 2
    kinds = ()
    prior: dict = field(default_factory=PRIOR.to_dict)

    @property
    def columns(self):
        return [COLUMNS.index(column) for target in self.targets for column in TARGETS[target]]

    def without_tta(self):
        return self

    def predict(self, stacks, settings):
        return self.table.loc[stacks["key"], list(COLUMNS)].to_numpy(float)[self.columns]


@pytest.fixture
def fake_runs(monkeypatch):
    """Ensembles load runs of `RUNS` by name, of two folds each; the tables of all."""
    tables = {name: draw_table(seed) for seed, name in enumerate(RUNS)}

    def load(number, run, flips):
        return [FakeMember(number, fold, RUNS[run.name], tables[run.name]) for fold in range(2)]

    monkeypatch.setattr(ensembles, "_load_members", load)
    return tables


def draw_table(seed: int) -> pd.DataFrame:
    """Normalised predictions of 30 patients, two series for every other one; the index has the ids."""
    first, second = (draw_predictions(LABELS, 2 * seed + own) for own in (0, 1))
    table = normalise(pd.concat([first.assign(series_id="1"), second.assign(series_id="2").iloc[::2]]))
    return table.set_index(["patient_id", "series_id"], drop=False)


def join(tables: dict, names: str, post: PostProcessing) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """The submission of infer.py, and the out-of-fold tables that the runs would have left."""
    chosen = names.split()
    ensemble = Ensemble([Path(name) for name in chosen], post.weights)
    series = list(tables["all"].index)
    results = Results(series, LABELS, post, ensemble.prior)
    for key in series:
        results.add(key, predict(ensemble, key, ensemble.full))
    left = []
    for name in chosen:
        missing = [column for target in TARGETS if target not in RUNS[name] for column in TARGETS[target]]
        left.append(tables[name].reset_index(drop=True).assign(**dict.fromkeys(missing, np.nan)))
    return results.predictions(), left


def predict(ensemble, key, subset):
    return ensemble.predict(LoadedSeries(key, {"key": key}), subset, ForwardSettings()).probabilities


@pytest.mark.parametrize("names", ["all", "all liver", "liver all spleen", "most all liver"])
@pytest.mark.parametrize("series_max", [0.0, 0.6])
def test_ensemble_joins_runs_of_some_targets_as_their_tables(fake_runs, names, series_max):
    weights = np.array([5.0, 2.0, 3.0])[: len(names.split())]
    post = PostProcessing(
        tuple(weights / weights.sum()),
        series_max,
        dict.fromkeys(TARGETS, 1.0) | {"liver": 0.7},
        dict.fromkeys(INJURIES, 1.0) | {"spleen_low": 2.0},
        any_injury=0.3,
    )
    predicted, tables = join(fake_runs, names, post)
    fitted = PatientRows.read(tables, predicted.patient_id).apply(post)
    np.testing.assert_allclose(predicted[list(COLUMNS)], fitted[list(COLUMNS)], rtol=1e-9)


def test_ensemble_predicts_the_prior_of_a_target_that_no_run_predicts(fake_runs):
    post = PostProcessing(
        (0.3, 0.7), 0.5, multipliers=dict.fromkeys(INJURIES, 1.0) | {"bowel_injury": 3.0}, any_injury=0.2
    )
    predicted, tables = join(fake_runs, "liver most", post)
    filled = [table.assign(**{name: PRIOR[name] for name in TARGETS["bowel"]}) for table in tables]
    fitted = PatientRows.read(filled, predicted.patient_id).apply(post)
    np.testing.assert_allclose(predicted[list(COLUMNS)], fitted[list(COLUMNS)], rtol=1e-9)


def test_ensemble_ignores_a_run_of_weight_0(fake_runs):
    post = PostProcessing((0.0, 1.0), series_max=0.5)
    predicted, tables = join(fake_runs, "all liver", post)
    alone = PatientRows.read([tables[1].fillna(PRIOR.to_dict())], predicted.patient_id).apply(
        PostProcessing((1.0,), series_max=0.5)
    )
    np.testing.assert_allclose(predicted[list(COLUMNS)], alone[list(COLUMNS)], rtol=1e-9)


def test_ensemble_replaces_runs_that_a_subset_excludes_by_the_others(fake_runs):
    ensemble = Ensemble([Path("liver"), Path("all"), Path("most")], (0.5, 0.2, 0.3))
    key = fake_runs["all"].index[0]
    without_all = ensemble._subset(np.array([1, 0, 1]), tta=True)
    liver, all_, most = predict(ensemble, key, without_all)
    own = {name: fake_runs[name].loc[key, list(COLUMNS)].to_numpy(float) for name in RUNS}
    is_liver = np.array([column in TARGETS["liver"] for column in COLUMNS])
    is_bowel = np.array([column in TARGETS["bowel"] for column in COLUMNS])
    # NaN where a run never predicts; the others or the prior where it is excluded
    np.testing.assert_array_equal(np.isnan(liver), ~is_liver)
    np.testing.assert_array_equal(np.isnan(most), is_bowel)
    np.testing.assert_allclose(all_[is_liver], (0.5 * own["liver"] + 0.3 * own["most"])[is_liver] / 0.8)
    np.testing.assert_allclose(all_[is_bowel], PRIOR[list(TARGETS["bowel"])])
    is_other = ~is_liver & ~is_bowel
    np.testing.assert_allclose(all_[is_other], own["most"][is_other])


@pytest.fixture(scope="module")
def runs(tta_run, tiny_run):
    return [tta_run, tiny_run]


def test_ensemble_subsets_are_everything_and_one_fold_of_each_run(runs):
    full, reduced = Ensemble(runs, (0.25, 0.75)).subsets
    assert (full.fold_counts, full.tta, full.passes) == ((2, 2), True, (8, 2))
    assert (reduced.fold_counts, reduced.tta, reduced.passes) == ((1, 1), False, (1, 1))
    full, reduced = Ensemble(runs, (1.0, 0.0)).subsets
    assert (full.fold_counts, reduced.fold_counts) == ((2, 0), (1, 0))


def test_ensemble_predicts_a_reduced_subset_as_one_network(tiny, runs):
    ensemble = Ensemble(runs[:1])
    source = open_source(tiny.raw, ensemble.stack_kinds)
    patient_id = sorted(path.name for path in (tiny.raw / "test_images").iterdir())[0]
    series = read_series(source, (patient_id, source.series_of(patient_id)[0]))
    reduced = ensemble.predict(series, ensemble.subsets[1], ForwardSettings()).probabilities[0]
    network = ensemble.members[0].without_tta()
    np.testing.assert_array_equal(reduced, network.predict(series.stacks, ForwardSettings()))


def test_infer_averages_runs_by_their_weights(tiny, runs, tmp_path):
    one, two = (submit(tiny.raw, run, tiny.sample, tmp_path / run.name) for run in runs)
    joined = submit(tiny.raw, runs, tiny.sample, tmp_path / "joined", "--weights", 3, 1)
    np.testing.assert_allclose(joined, 0.75 * one + 0.25 * two, atol=1e-6)


@pytest.mark.parametrize("weights", [(1,), (-1, 2), (0, 0)])
def test_infer_refuses_weights_that_make_no_sense(tiny, runs, tmp_path, weights):
    with pytest.raises(UserError, match="--weights takes a number for each of the 2"):
        submit(tiny.raw, runs, tiny.sample, tmp_path, "--weights", *weights)
