"""`python -m src.seg.evaluate`: scores of a folder of predictions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.core.errors import UserError
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset, image_folder, write_masks
from src.seg import evaluate
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.voco_files import write_prepared, write_slice_table

SIZE, SLICES = 16, 8
FIRST, SECOND, THIRD = ("10", "100"), ("11", "101"), ("12", "102")


def true_masks() -> np.ndarray:
    """(Z, H, W): a liver and a spleen of one slice, a left kidney of two; no right kidney, no bowel."""
    labels = np.zeros((SLICES, SIZE, SIZE), dtype=np.uint8)
    labels[2, 2:8, 2:8] = ORGANS["liver"]
    labels[2, 2:8, 10:14] = ORGANS["spleen"]
    labels[4:6, 10:12, 10:12] = ORGANS["left kidney"]
    return labels


def write_set(folder: Path, **changes: object) -> Path:
    """Three series of 5 mm slices and 2 mm pixels, with masks."""
    blank = np.zeros((SIZE, SIZE, 1), dtype=np.uint8)
    given = {"series": 3, "slices": SLICES, "windows": ("soft",), "slice_mm": 5.0, "pixel_mm": 2.0} | changes
    write_prepared(folder, lambda series, index: blank, **given)
    dataset = PreparedDataset.open(folder)
    for ids in (FIRST, SECOND, THIRD)[: given["series"]]:
        dataset.write_masks(*ids, true_masks()[: given["slices"]])
    return folder


def predict(folder: Path, ids: tuple[str, str], maps: np.ndarray) -> None:
    write_masks(folder.joinpath(*ids), maps)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_set(tmp_path / "prepared")


@pytest.fixture
def predicted(tmp_path) -> Path:
    """The first series perfect; the second one slice too low, its spleen labelled bowel."""
    folder = tmp_path / "predicted"
    predict(folder, FIRST, true_masks())
    wrong = np.roll(true_masks(), 1, axis=0)
    wrong[wrong == ORGANS["spleen"]] = ORGANS["bowel"]
    predict(folder, SECOND, wrong)
    return folder


DIAGONAL = float(np.linalg.norm([SLICES * 5, SIZE * 2, SIZE * 2]))


def test_main_writes_scores_and_means(data, predicted, tmp_path, capsys):
    files = f"--output {tmp_path}/scores.csv --json {tmp_path}/found.json"
    evaluate.main(f"--data {data} --predicted {predicted} {files}".split())

    printed = capsys.readouterr()
    assert "2 series scored" in printed.out
    assert [line.split()[0] for line in printed.out.strip().splitlines()[3:]] == [
        *("liver", "spleen", "left", "right", "bowel", "mean")
    ]
    assert printed.err == f"warning: 1 of 3 series with true masks have no prediction in {predicted}\n"

    rows = pd.read_csv(tmp_path / "scores.csv", dtype={"patient_id": str, "series_id": str})
    assert rows.columns[:3].tolist() == ["patient_id", "series_id", "organ"]
    assert list(zip(rows["patient_id"], rows["series_id"], strict=True)) == [FIRST] * 5 + [SECOND] * 5
    cases = ["scored", "missed", "scored", "absent", "invented"]
    assert rows["case"].tolist() == [*["scored"] * 3, *["absent"] * 2, *cases]

    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["series", "organs", "mean"] and found["series"] == 2
    assert list(found["organs"]) == list(ORGANS)
    liver = {"dice": 0.5, "jaccard": 0.5, "hd95_mm": 2.5, "asd_mm": 2.5}
    assert found["organs"]["liver"] == pytest.approx(liver | {"series": 2, "missed": 0, "invented": 0})
    half = DIAGONAL / 2  # of a perfect and a missed one
    spleen = {"dice": 0.5, "jaccard": 0.5, "hd95_mm": half, "asd_mm": half}
    assert found["organs"]["spleen"] == pytest.approx(spleen | {"series": 2, "missed": 1, "invented": 0})
    # of two slices one is shared: 4 of 12 voxels; half of the surface is 5 mm off, the rest lies on the other
    kidney = {"dice": 0.75, "jaccard": (1 + 1 / 3) / 2, "hd95_mm": 2.5, "asd_mm": 1.25}
    assert found["organs"]["left kidney"] == pytest.approx(kidney | {"series": 2, "missed": 0, "invented": 0})
    nothing = {"dice": None, "jaccard": None, "hd95_mm": None, "asd_mm": None}
    assert found["organs"]["right kidney"] == nothing | {"series": 0, "missed": 0, "invented": 0}
    bowel = {"dice": 0.0, "jaccard": 0.0, "hd95_mm": DIAGONAL, "asd_mm": DIAGONAL}
    assert found["organs"]["bowel"] == pytest.approx(bowel | {"series": 1, "missed": 0, "invented": 1})
    assert found["mean"]["dice"] == pytest.approx((0.5 + 0.5 + 0.75 + 0) / 4)
    assert found["mean"]["hd95_mm"] == pytest.approx((2.5 + half + 2.5 + DIAGONAL) / 4)


def test_main_finds_predicted_masks_in_the_data_set(data, predicted, capsys):
    shutil.copytree(predicted, data / "predicted_masks")
    evaluate.main(["--data", str(data), "--organs", "left kidney", "liver"])
    printed = capsys.readouterr().out
    assert f"{data / 'predicted_masks'}: 2 series scored" in printed
    assert [line.split()[0] for line in printed.strip().splitlines()[3:]] == ["left", "liver", "mean"]


def test_main_scores_the_series_of_a_table(data, predicted, tmp_path, capsys):
    predict(predicted, THIRD, true_masks())
    table = pd.DataFrame([SECOND, ("99", "7"), SECOND], columns=["patient_id", "series_id"])
    table.to_csv(tmp_path / "some.csv", index=False)
    argv = f"--data {data} --predicted {predicted} --series {tmp_path}/some.csv --output {tmp_path}/s.csv"
    evaluate.main(argv.split())
    rows = pd.read_csv(tmp_path / "s.csv", dtype=str)
    assert rows["patient_id"].unique().tolist() == ["11"] and len(rows) == len(ORGANS)
    assert "warning: 1 of 2 series in" in capsys.readouterr().err


def test_main_counts_the_doubtful_series_that_it_scores(data, predicted, capsys):
    scored = ["--data", str(data), "--predicted", str(predicted)]
    evaluate.main(scored)
    assert "series scored\n" in capsys.readouterr().out
    mark_doubtful(data, ["100"])
    evaluate.main(scored)
    assert "series scored, 1 of them doubtful" in capsys.readouterr().out


def test_choose_series_needs_usable_series_with_true_masks(data, predicted, capsys):
    predict(predicted, THIRD, true_masks())
    table = pd.read_csv(data / "series.csv")
    table.loc[1, "status"] = "failed"
    table.to_csv(data / "series.csv", index=False)
    shutil.rmtree(data / "masks" / "12")
    chosen = evaluate.choose_series(PreparedDataset.open(data), predicted)
    assert chosen["patient_id"].tolist() == ["10"] and capsys.readouterr().err == ""


def test_spacing_mm_is_that_of_the_prepared_slices(data, predicted):
    z_mm = [0, -10, -20, -30, -70, -80, -90, -100]  # every other slice kept, and some are missing
    write_slice_table(image_folder(data, *SECOND), np.array(z_mm, dtype=float))
    dataset = PreparedDataset.open(data)
    rows = [row for _, row in dataset.series[:2].iterrows()]
    assert [evaluate.spacing_mm(dataset, row) for row in rows] == [(5, 2, 2), (10, 2, 2)]
    scores = [evaluate.score_series(dataset, row, predicted, ["liver"])["hd95_mm"].item() for row in rows]
    assert scores == pytest.approx([0, 10])


@pytest.mark.parametrize(("source_mm", "expected"), [(4.0, 4.0), (float("nan"), 2.0)])
def test_spacing_mm_of_one_slice_is_that_of_its_source_or_its_pixels(tmp_path, source_mm, expected):
    folder = write_set(tmp_path / "prepared", series=1, slices=1)
    table = pd.read_csv(folder / "series.csv").assign(spacing_z_mm=source_mm)
    table.to_csv(folder / "series.csv", index=False)
    dataset = PreparedDataset.open(folder)
    assert evaluate.spacing_mm(dataset, dataset.series.iloc[0]) == (expected, 2, 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda data, predicted: (predicted.joinpath(*SECOND) / "0003.png").unlink(),
            r"predicted/11/101 holds 7 slices, its series has 8",
        ),
        (
            lambda data, predicted: predict(predicted, SECOND, true_masks()[:, ::2, ::2]),
            r"predicted/11/101/0000.png does not fit .*: masks are 8 PNG of 16 x 16 px",
        ),
        (
            lambda data, predicted: predict(predicted, SECOND, np.full_like(true_masks(), 255)),
            r"predicted/11/101 holds the label 255",
        ),
        (
            lambda data, predicted: shutil.rmtree(predicted),
            r"predicted has no prediction for the 3 series with true masks",
        ),
        (lambda data, predicted: shutil.rmtree(data / "masks"), r"no series of \S+prepared has true masks"),
    ],
)
def test_main_names_bad_files_in_one_line(data, predicted, tmp_path, spoil, message):
    spoil(data, predicted)
    output = tmp_path / "scores.csv"
    with pytest.raises(UserError, match=message):
        evaluate.main(f"--data {data} --predicted {predicted} --output {output}".split())
    assert not output.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--organs liver liver", "option --organs needs one or more organs, each once"),
        ("--json {data}", "is a folder: name a file to write"),
    ],
)
def test_main_refuses_wrong_options(data, predicted, more, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(f"--data {data} --predicted {predicted} {more.format(data=data)}".split())
