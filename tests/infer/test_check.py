"""infer.py --check: what the competition would refuse is refused here, with the reason."""

import pandas as pd
import pytest

import infer
from src.core.errors import UserError
from src.core.targets import COLUMNS


@pytest.fixture
def tables(tmp_path):
    """A sample of three patients, and a submission that fits it."""
    sample = pd.DataFrame({"patient_id": ["48843", "50046", "063706"], **dict.fromkeys(COLUMNS, 0.5)})
    sample.to_csv(tmp_path / "sample.csv", index=False)
    return sample.copy(), tmp_path


def check(frame, folder):
    frame.to_csv(folder / "submission.csv", index=False)
    infer.main(["--check", f"{folder}/submission.csv", "--sample", f"{folder}/sample.csv"])


def test_a_valid_file_passes(tables, capsys):
    check(*tables)
    assert "is valid: 3 patients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frame: frame.drop(columns="liver_low"), "lacks the column liver_low"),
        (lambda frame: frame.assign(extra=1), "these columns in this order"),
        (lambda frame: frame[["patient_id", *COLUMNS[::-1]]], "these columns in this order"),
        (lambda frame: frame.iloc[::-1], "order of the sample"),
        (lambda frame: frame.iloc[:2], "063706"),
        (lambda frame: pd.concat([frame, frame.iloc[:1]]), "48843"),
        (lambda frame: frame.assign(patient_id=["48843", "50046", "63706"]), "63706"),
        (
            lambda frame: frame.assign(liver_low=[0.1, None, 0.1]),
            "liver_low of patient 50046 is not",
        ),
        (lambda frame: frame.assign(liver_low=[0.1, float("inf"), 0.1]), "not a finite number"),
        (lambda frame: frame.assign(liver_low=[0.1, -0.1, 0.1]), "negative"),
        (lambda frame: frame.assign(liver_low=["a", "b", "c"]), "liver_low"),
        (
            lambda frame: frame.assign(bowel_healthy=0, bowel_injury=0),
            "bowel needs at least one value",
        ),
    ],
)
def test_what_would_be_refused_is_refused(tables, change, reason):
    frame, folder = tables
    with pytest.raises(UserError, match=reason) as caught:
        check(change(frame), folder)
    assert "\n" not in str(caught.value) and "submission.csv" in str(caught.value)


def test_a_sample_with_a_patient_twice_is_refused(tables):
    frame, folder = tables
    pd.concat([frame, frame]).to_csv(folder / "sample.csv", index=False)
    with pytest.raises(UserError, match="names patient 48843 twice"):
        check(frame, folder)


def test_a_missing_file_is_told(tables):
    _, folder = tables
    with pytest.raises(UserError, match="no table"):
        infer.main(["--check", f"{folder}/none.csv", "--sample", f"{folder}/sample.csv"])
