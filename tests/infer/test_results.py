"""submission.csv: --check refuses what the competition would, and results can be saved at any time."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import infer
from src.core.errors import UserError
from src.core.targets import COLUMNS, INJURIES
from src.infer.results import Results
from src.score.postprocess import PatientRows, PostProcessing


@pytest.fixture
def tables(tmp_path):
    """A sample of three patients, and a submission that fits it."""
    sample = pd.DataFrame({"patient_id": ["48843", "50046", "063706"], **dict.fromkeys(COLUMNS, 0.5)})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    return sample.copy(), tmp_path


def check(frame, folder):
    frame.to_csv(folder / "submission.csv", index=False)
    infer.main(["--check", f"{folder}/submission.csv", "--sample", f"{folder}/sample.csv"])


def test_check_accepts_a_valid_file(tables, capsys):
    check(*tables)
    assert "is valid: 3 patients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame.drop(columns="liver_low"), "lacks the column liver_low"),
        (lambda frame: frame[["patient_id", *COLUMNS[::-1]]], "these columns in this order"),
        (lambda frame: frame.iloc[::-1], "order of the sample"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "48843"),
        (lambda frame: frame.assign(patient_id=["48843", "50046", "63706"]), "63706"),
        (lambda frame: frame.assign(liver_low=[0.1, float("inf"), 0.1]), "not a finite number"),
        (lambda frame: frame.assign(liver_low=["a", "b", "c"]), "liver_low"),
        (lambda frame: frame.assign(bowel_healthy=0, bowel_injury=0), "bowel needs at least one value"),
    ],
)
def test_check_refuses_what_the_competition_would(tables, change, reason):
    frame, folder = tables
    with pytest.raises(UserError, match=reason) as caught:
        check(change(frame), folder)
    assert "\n" not in str(caught.value) and "submission.csv" in str(caught.value)


def test_check_refuses_a_sample_with_a_patient_twice(tables):
    frame, folder = tables
    pd.concat([frame, frame]).to_csv(folder / "sample.csv", index=False)
    with pytest.raises(UserError, match="names patient 48843 twice"):
        check(frame, folder)


def test_results_can_be_saved_while_a_series_is_added(tables, monkeypatch):
    """The thread that ends a stuck run saves what there is, whatever the others do meanwhile."""
    sample, folder = tables
    series = [(patient_id, "1") for patient_id in sample.patient_id]
    prior = pd.Series(0.5, index=COLUMNS)
    results = Results(series, sample, PostProcessing.identity(1), prior)
    probabilities = np.full((1, 13), 0.25)
    results.add(series[0], probabilities)
    read = PatientRows.read

    def read_meanwhile(*given):
        results.add(series[1], probabilities)
        return read(*given)

    monkeypatch.setattr(PatientRows, "read", read_meanwhile)
    results.save(folder / "submission.csv")
    infer.main(["--check", f"{folder}/submission.csv", "--sample", f"{folder}/sample.csv"])
    assert results.report().status.tolist().count("ok") == 2


@pytest.mark.filterwarnings("ignore:overflow")
def test_results_report_a_row_that_breaks_a_rule(tables):
    """A row whose columns of a target sum to 0 would void the submission; the patient gets the prior."""
    sample, folder = tables
    series = [(patient_id, "1") for patient_id in sample.patient_id]
    post = replace(PostProcessing.identity(1), multipliers=dict.fromkeys(INJURIES, 1.7e308))
    results = Results(series, sample, post, pd.Series(0.5, index=COLUMNS))
    healthy = np.array([[column.endswith("healthy") for column in COLUMNS]], dtype=float)
    for key in series:  # only the first patient's injuries overflow
        results.add(key, np.full((1, 13), 0.25) if key == series[0] else healthy)
    results.save(folder / "submission.csv")
    infer.main(["--check", f"{folder}/submission.csv", "--sample", f"{folder}/sample.csv"])
    report = results.report()
    assert report[report.status == "prior"][["patient_id", "reason"]].to_numpy().tolist() == [
        [series[0][0], "the prediction breaks a rule of the competition"]
    ]
