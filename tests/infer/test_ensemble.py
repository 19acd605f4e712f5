"""infer.py joins series and runs as the post-processing's fit joined the out-of-fold tables."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.targets import COLUMNS, GROUPS, INJURIES
from src.infer import ensemble as ensembles
from src.infer.ensemble import Effort, Ensemble, Share
from src.infer.placement import Placement
from src.infer.results import Results
from src.score.metric import normalise
from src.score.postprocess import PatientRows, PostProcessing
from src.score.prior import weight_aware_prior
from tests.helpers.score_frames import draw_labels, draw_predictions

LABELS = draw_labels(30)
PRIOR = weight_aware_prior(LABELS)
RUNS = {
    "all": tuple(GROUPS),
    "liver": ("liver",),
    "most": ("extravasation", "kidney", "liver", "spleen"),
    "spleen": ("spleen",),
}
"""The targets that each run tells."""


@dataclass
class Told:
    """A network whose answers are known: of the series that `stacks` names."""

    targets: tuple[str, ...]
    table: pd.DataFrame
    prior: dict = field(default_factory=PRIOR.to_dict)

    @property
    def columns(self):
        return tuple(column for target in self.targets for column in GROUPS[target])

    def kinds(self, tta):
        return ()

    def count_passes(self, tta):
        return 1

    def predict(self, stacks, tta, effort):
        return self.table.loc[stacks, list(self.columns)].to_numpy()


def draw_table(seed: int) -> pd.DataFrame:
    """Normalised predictions of 30 patients, two series for every other one; the index tells the series."""
    first, second = (draw_predictions(LABELS, 2 * seed + own) for own in (0, 1))
    table = normalise(pd.concat([first.assign(series_id="1"), second.assign(series_id="2").iloc[::2]]))
    return table.set_index(["patient_id", "series_id"], drop=False)


def join(monkeypatch, names: str, post: PostProcessing) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """What infer.py makes of the runs, and the out-of-fold tables that they would have left."""
    tables = {name: draw_table(seed) for seed, name in enumerate(RUNS)}
    chosen = names.split()
    monkeypatch.setattr(
        ensembles, "_read_folds", lambda run, placement, flips: [[Told(RUNS[run.name], tables[run.name])]] * 2
    )
    ensemble = Ensemble([Path("runs") / name for name in chosen], Placement.on_cpu(), post.weights)
    series = list(tables["all"].index)
    results = Results(series, list(LABELS.patient_id), post, ensemble.prior)
    for key in series:
        results.add(key, ensemble.predict(key, ensemble.all, Effort(nullcontext))[0])
    left = []
    for name in chosen:
        untold = [column for target in GROUPS if target not in RUNS[name] for column in GROUPS[target]]
        left.append(tables[name].reset_index(drop=True).assign(**dict.fromkeys(untold, np.nan)))
    return results.predictions(), left


@pytest.mark.parametrize("names", ["all", "all liver", "liver all spleen", "most all liver"])
@pytest.mark.parametrize("series_max", [0.0, 0.6])
def test_runs_of_few_targets_are_joined_as_their_tables_were(monkeypatch, names, series_max):
    weights = np.array([5.0, 2.0, 3.0])[: len(names.split())]
    post = PostProcessing(
        tuple(weights / weights.sum()),
        series_max,
        dict.fromkeys(GROUPS, 1.0) | {"liver": 0.7},
        dict.fromkeys(INJURIES, 1.0) | {"spleen_low": 2.0},
        any_injury=0.3,
    )
    predicted, tables = join(monkeypatch, names, post)
    fitted = PatientRows.read(tables, predicted.patient_id).apply(post)
    np.testing.assert_allclose(predicted[list(COLUMNS)], fitted[list(COLUMNS)], rtol=1e-9)


def test_what_no_run_tells_is_the_prior_adjusted_as_the_tables_prior_was(monkeypatch):
    post = PostProcessing(
        (0.3, 0.7), 0.5, multipliers=dict.fromkeys(INJURIES, 1.0) | {"bowel_injury": 3.0}, any_injury=0.2
    )
    predicted, tables = join(monkeypatch, "liver most", post)
    filled = [table.assign(**{name: PRIOR[name] for name in GROUPS["bowel"]}) for table in tables]
    fitted = PatientRows.read(filled, predicted.patient_id).apply(post)
    np.testing.assert_allclose(predicted[list(COLUMNS)], fitted[list(COLUMNS)], rtol=1e-9)


def test_a_run_of_no_weight_is_not_asked(monkeypatch):
    post = PostProcessing((0.0, 1.0), series_max=0.5)
    predicted, tables = join(monkeypatch, "all liver", post)
    alone = PatientRows.read([tables[1].fillna(PRIOR.to_dict())], predicted.patient_id).apply(
        PostProcessing((1.0,), series_max=0.5)
    )
    np.testing.assert_allclose(predicted[list(COLUMNS)], alone[list(COLUMNS)], rtol=1e-9)


def test_where_a_series_is_thinned_the_other_runs_stand_in(monkeypatch):
    tables = {name: draw_table(seed) for seed, name in enumerate(RUNS)}
    monkeypatch.setattr(
        ensembles, "_read_folds", lambda run, placement, flips: [[Told(RUNS[run.name], tables[run.name])]]
    )
    ensemble = Ensemble([Path("liver"), Path("all"), Path("most")], Placement.on_cpu(), (0.5, 0.2, 0.3))
    key = tables["all"].index[0]
    liver, all_, most = ensemble.predict(key, Share((1, 0, 1)), Effort(nullcontext))[0]
    own = {name: tables[name].loc[key, list(COLUMNS)].to_numpy(float) for name in RUNS}
    is_liver = np.array([column in GROUPS["liver"] for column in COLUMNS])
    is_bowel = np.array([column in GROUPS["bowel"] for column in COLUMNS])
    # never told, so left to the join; left out of this series, so told by the others or the prior
    np.testing.assert_array_equal(np.isnan(liver), ~is_liver)
    np.testing.assert_array_equal(np.isnan(most), is_bowel)
    np.testing.assert_allclose(all_[is_liver], (0.5 * own["liver"] + 0.3 * own["most"])[is_liver] / 0.8)
    np.testing.assert_allclose(all_[is_bowel], PRIOR[list(GROUPS["bowel"])])
    is_other = ~is_liver & ~is_bowel
    np.testing.assert_allclose(all_[is_other], own["most"][is_other])


def test_a_series_that_comes_while_the_submission_is_made_is_in_it_or_not(monkeypatch):
    """The thread that ends a stuck run saves what there is, whatever the others do meanwhile."""
    patient_ids = list(LABELS.patient_id[:5])
    series = [(patient_id, "1") for patient_id in patient_ids]
    results = Results(series, patient_ids, PostProcessing.identity(1), PRIOR)
    answer = draw_table(0)[list(COLUMNS)].to_numpy()[:1]
    results.add(series[0], answer)
    read = PatientRows.read

    def read_meanwhile(*given):
        results.add(series[1], answer)
        return read(*given)

    monkeypatch.setattr(PatientRows, "read", read_meanwhile)
    assert sorted(results.predictions().patient_id) == sorted(patient_ids)
    assert results.report().status.tolist().count("ok") == 2
