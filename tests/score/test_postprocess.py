"""Post-processing worked by hand: series, tables, probabilities, and its JSON file."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import COLUMNS, INJURIES, TARGETS
from src.score.metric import any_injury, score
from src.score.postprocess import PatientRows, PostProcessing, read_post, write_post
from src.score.submission import combine_series, combine_tables
from tests.helpers.score_frames import draw_labels, draw_predictions

ONES = dict.fromkeys(TARGETS, 1.0)


def patient(**changes: float) -> dict[str, float]:
    """Nearly healthy, but for what is given; `liver=(0.5, 0.3, 0.2)` sets a target."""
    row = {column: 0.98 if column.endswith("_healthy") else 0.02 for column in COLUMNS}
    for target in ("kidney", "liver", "spleen"):
        row |= {f"{target}_low": 0.01, f"{target}_high": 0.01}
    for target, values in changes.items():
        row |= dict(zip(TARGETS[target], values, strict=True))
    return row


def adjusted(rows: list[dict[str, float]], ids: list[str], **numbers) -> pd.Series:
    """The only patient of one table after post-processing."""
    table = pd.DataFrame(rows).assign(patient_id=ids)
    return PatientRows.read([table], pd.Series(ids[:1])).apply(PostProcessing((1.0,), **numbers)).iloc[0]


def test_identity_is_the_plain_mean_of_series_and_tables():
    labels = draw_labels(40)
    tables = [
        pd.concat([draw_predictions(labels, seed), draw_predictions(labels, seed + 9).iloc[::2]])
        for seed in (1, 2)
    ]
    plain = combine_tables([combine_series(table) for table in tables])
    post = PatientRows.read(tables, labels.patient_id).apply(PostProcessing.identity(2))
    assert score(labels, post).score == pytest.approx(score(labels, plain).score, abs=1e-12)


TWO_SERIES = [{"liver": (0.6, 0.3, 0.1)}, {"liver": (0.9, 0.05, 0.05), "spleen": (0.5, 0.1, 0.4)}]
ONE_SERIES = [{"liver": (0.6, 0.3, 0.1), "kidney": (0.8, 0.1, 0.1)}]
CERTAIN = [{"bowel": (1.0, 0.0), "liver": (0.0, 0.0, 1.0)}]
COLD = dict.fromkeys(TARGETS, 0.1)
TRIPLE = dict.fromkeys(INJURIES, 1.0) | {"liver_high": 3.0}


@pytest.mark.parametrize(
    ("series", "numbers", "expected"),
    [
        (TWO_SERIES, {"series_max": 0.0}, {"liver": (0.75, 0.175, 0.075), "spleen": (0.74, 0.055, 0.205)}),
        (TWO_SERIES, {"series_max": 1.0}, {"liver": (0.6, 0.3, 0.1), "spleen": (0.5, 0.1, 0.4)}),
        (TWO_SERIES, {"series_max": 0.5}, {"liver": (0.675, 0.2375, 0.0875)}),
        (ONE_SERIES, {"series_max": 1.0}, {"liver": (0.6, 0.3, 0.1), "kidney": (0.8, 0.1, 0.1)}),
        (ONE_SERIES, {"temperature": ONES | {"liver": 0.5}}, {"liver": (36 / 46, 9 / 46, 1 / 46)}),
        (ONE_SERIES, {"temperature": ONES | {"liver": 0.5}}, {"kidney": (0.8, 0.1, 0.1)}),
        (ONE_SERIES, {"multipliers": TRIPLE}, {"liver": (0.5, 0.25, 0.25), "kidney": (0.8, 0.1, 0.1)}),
        (
            CERTAIN,
            {"temperature": dict.fromkeys(TARGETS, 0.1), "series_max": 0.3, "any_injury": 0.5},
            {"liver": (0, 0, 1)},
        ),
    ],
)
def test_apply_worked_by_hand(series, numbers, expected):
    row = adjusted([patient(**each) for each in series], ["7"] * len(series), **numbers)
    for target, values in expected.items():
        assert row[list(TARGETS[target])].tolist() == pytest.approx(values, abs=1e-9)


def test_apply_mixes_tables_by_their_weights():
    tables = [pd.DataFrame([patient(bowel=(1 - p, p))]).assign(patient_id="7") for p in (0.2, 0.6)]
    mixed = PatientRows.read(tables, pd.Series(["7"])).apply(PostProcessing((0.75, 0.25))).iloc[0]
    assert mixed.bowel_injury == pytest.approx(0.75 * 0.2 + 0.25 * 0.6)


def test_any_injury_raises_the_most_injured_target_towards_independence():
    row = [patient(liver=(0.6, 0.3, 0.1), kidney=(0.7, 0.2, 0.1))]
    before = adjusted(row, ["7"])
    together = 1 - before[[columns[0] for columns in TARGETS.values()]].prod()
    for share in (0.5, 1.0):
        after = adjusted(row, ["7"], any_injury=share)
        raised = (1 - share) * 0.4 + share * together
        assert 1 - after.liver_healthy == pytest.approx(raised)
        assert after.liver_low / after.liver_high == pytest.approx(3.0)
        assert after.kidney_healthy == pytest.approx(0.7)
        assert any_injury(after.to_frame().T)[0] == pytest.approx(raised)


def test_read_post_reads_what_write_post_wrote(tmp_path):
    post = PostProcessing(
        (0.25, 0.75), 0.5, {**ONES, "liver": 0.8}, {**dict.fromkeys(INJURIES, 1.0), "liver_low": 2.0}, 0.3
    )
    tables = ("runs/a/oof_series.csv", "runs/b/oof_series.csv")
    write_post(post, tmp_path / "post.json", tables, patients=7)
    assert read_post(tmp_path / "post.json") == replace(post, tables=tables)
    content = json.loads((tmp_path / "post.json").read_text())
    assert content["tables"] == list(tables)
    del content["tables"]  # as another program may write it
    (tmp_path / "post.json").write_text(json.dumps(content))
    assert read_post(tmp_path / "post.json") == post


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [0.5, 0.6]}, "weights must be at least 0 and sum to 1"),
        ({"weights": [1.5, -0.5]}, "weights must be at least 0 and sum to 1"),
        ({"series_max": 2}, "series_max must be in 0..1"),
        ({"temperature": {"liver": 1}}, "temperature must give a number above 0 to bowel"),
        ({"multipliers": dict.fromkeys(INJURIES, 0)}, "multipliers must give a number above 0"),
        ({"any_injury": "much"}, "values of another kind"),
        ({"format": 9}, "has format 9, not 1"),
        ({"tables": ["A"]}, "2 weights for the 1 tables A"),
        ({"tables": None}, "values of another kind"),
        ({"temperature": None}, "values of another kind"),
    ],
)
def test_read_post_refuses_a_damaged_file(tmp_path, change, message):
    path = tmp_path / "post.json"
    write_post(PostProcessing.identity(2), path, ["A", "B"])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_post(path)


FITTED = ("runs/cls/second/oof_series.csv", "/elsewhere/plus/oof.csv", "v2/oof_series.csv")


def test_require_runs_refuses_another_order_or_number():
    labels = draw_labels(10)
    rows = PatientRows.read([draw_predictions(labels)], labels.patient_id)
    with pytest.raises(UserError, match="fitted on 2 tables or runs, there are 1"):
        rows.apply(PostProcessing.identity(2))
    fitted = PostProcessing((0.5, 0.3, 0.2), tables=FITTED)
    with pytest.raises(UserError, match=r"in another order .*: give --models runs/cls/second a/plus v2$"):
        fitted.require_runs([Path("a/plus"), Path("v2"), Path("runs/cls/second")])
    with pytest.raises(UserError, match="fitted on 3 tables or runs, there are 2"):
        fitted.require_runs([Path("runs/cls/second"), Path("a/plus")])


@pytest.mark.parametrize(
    ("tables", "runs"),
    [
        (FITTED, ("runs/cls/second", "a/plus", "v2")),
        (FITTED, ("runs/cls/second/../second/", "a/plus/", "b/v2")),
        (FITTED, ("models/0_second", "models/1_plus", "models/2_v2")),
        (FITTED, ("moved/a", "moved/b", "moved/c")),
        (("a/run/oof.csv", "b/run/oof.csv"), ("b/run", "a/run")),
        (("a.csv", "b.csv"), ("b", "a")),
    ],
    ids=["as fitted", "written otherwise", "in a bundle", "renamed", "equal names", "without folders"],
)
def test_require_runs_accepts_the_same_order_and_other_names(tables, runs):
    weights = tuple([1 / len(tables)] * len(tables))
    PostProcessing(weights, tables=tables).require_runs([Path(run) for run in runs])
