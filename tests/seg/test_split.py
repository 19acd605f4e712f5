"""Which series of the prepared sets are labelled, unlabelled and held out."""

import pandas as pd
import pytest

from src.core.errors import UserError
from src.seg.options import SegOptions
from src.seg.split import open_data
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.seg_places import make_options, write_places
from tests.helpers.voco_files import draw_places, write_prepared


@pytest.fixture
def prepared(tmp_path):
    return write_places(tmp_path / "set")


def parts_of(options: SegOptions) -> dict[str, str]:
    series = open_data(options).series
    return dict(zip(series["patient_id"], series["part"], strict=True))


def test_open_data_labels_series_with_masks(prepared):
    assert list(parts_of(make_options(prepared)).values()) == ["labelled"] * 4 + ["unlabelled"] * 2


def test_open_data_labels_the_series_of_a_table_only(prepared, tmp_path):
    table = tmp_path / "few.csv"
    table.write_text("patient_id,series_id\n11,101\n")
    parts = parts_of(make_options(prepared, labelled=str(table)))
    assert [patient for patient, part in parts.items() if part == "labelled"] == ["11"]
    assert set(parts.values()) == {"labelled", "unlabelled"}
    table.write_text("patient_id,series_id\n14,104\n")
    with pytest.raises(UserError, match="series 104 of patient 14 has no masks"):
        open_data(make_options(prepared, labelled=str(table)))


def test_open_data_holds_out_all_series_of_a_patient(prepared):
    table = pd.read_csv(prepared / "series.csv", dtype=str)
    table.loc[5, "patient_id"] = "10"  # the first patient, who is labelled, gets an unlabelled series
    (prepared / "images" / "15").rename(prepared / "images" / "10b")
    (prepared / "images" / "10b" / "105").rename(prepared / "images" / "10" / "105")
    table.sort_values(["patient_id", "series_id"]).to_csv(prepared / "series.csv", index=False)
    series = open_data(make_options(prepared, leave_out=("10",))).series
    assert series.loc[series["patient_id"] == "10", "part"].tolist() == ["left out"] * 2
    assert (series["part"] == "left out").sum() == 2


def test_open_data_draws_validation_patients_from_the_seed(prepared):
    drawn = [
        tuple(patient for patient, part in parts_of(options).items() if part == "left out")
        for options in (make_options(prepared, validation=0.5, seed=seed) for seed in (0, 0, 1, 2, 3))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert all(len(patients) == 2 and set(patients) <= {"10", "11", "12", "13"} for patients in drawn)


def test_open_data_holds_out_at_least_one_patient_and_keeps_one(prepared):
    for share in (0.01, 0.99):
        parts = list(parts_of(make_options(prepared, validation=share)).values())
        assert parts.count("left out") == (1 if share < 0.5 else 3)
        assert parts.count("labelled") == (3 if share < 0.5 else 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ("99",)}, "no patient 99"),
        ({"leave_out": ("10", "11", "12", "13")}, "no labelled series"),
        ({"windows": ("lung",)}, "no window lung"),
        ({"pseudo": 1.0, "leave_out": ("14", "15")}, "no unlabelled series"),
    ],
)
def test_open_data_refuses_what_it_cannot_train_on(prepared, changes, message):
    with pytest.raises(UserError, match=message):
        open_data(make_options(prepared, **changes))


def test_open_data_leaves_doubtful_series_out_of_every_part(prepared, tmp_path):
    mark_doubtful(prepared, ["100", "104"])
    table = tmp_path / "few.csv"
    table.write_text("patient_id,series_id\n10,100\n11,101\n12,102\n")  # the first one is doubtful
    given = {"labelled": str(table), "leave_out": ("10", "11", "14")}
    data = open_data(make_options(prepared, **given))
    assert data.doubtful == 2
    assert dict(zip(data.series["patient_id"], data.series["part"], strict=True)) == {
        "11": "left out",
        "12": "labelled",
        "13": "unlabelled",
        "15": "unlabelled",
    }
    assert data.series.index.tolist() == [0, 1, 2, 3]
    kept = open_data(make_options(prepared, doubtful="keep", **given))
    assert kept.series["patient_id"].tolist() == ["10", "11", "12", "13", "14", "15"]
    assert kept.part("left out")["patient_id"].tolist() == ["10", "11", "14"]


def test_open_data_draws_no_validation_patient_with_doubtful_series_only(prepared):
    mark_doubtful(prepared, ["100", "101", "102"])
    for seed in range(4):
        parts = parts_of(make_options(prepared, validation=0.5, seed=seed))
        assert parts == {"13": "labelled", "14": "unlabelled", "15": "unlabelled"}


@pytest.mark.parametrize(
    ("doubtful", "message"),
    [
        (["100", "101", "102", "103", "104", "105"], "all 6 series of .* are doubtful.*--doubtful keep"),
        (["100", "101", "102", "103"], "no labelled series.*--doubtful keep"),
        (["104", "105"], "no unlabelled series.*--doubtful keep"),
    ],
)
def test_open_data_names_the_option_where_doubtful_series_are_missed(prepared, doubtful, message):
    mark_doubtful(prepared, doubtful)
    with pytest.raises(UserError, match=message):
        open_data(make_options(prepared, pseudo=1.0))
    assert len(open_data(make_options(prepared, pseudo=1.0, doubtful="keep")).series) == 6


def test_open_data_refuses_sets_of_two_sizes(prepared, tmp_path):
    other = write_prepared(tmp_path / "small", lambda s, i: draw_places(s, i)[:40, :40])
    with pytest.raises(UserError, match="40 and 48 px"):
        open_data(make_options(prepared, other))
