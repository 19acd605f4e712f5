"""The representation study: rows that are comparable, pieces, and the tables that are printed from them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import representation_study
import representation_tables
from harness import run_benchmark
from organ_encoder import OrganOptions
from representation_rows import ABLATION, ALL_ROWS, SIZE, TILE, pretraining
from representation_tables import INJURIES, Table, difference_line, mean_line, steps_line
from scipy.stats import t as student
from study import Piece
from task_probe import predict, task_figures

from src.core.config import ROOT
from src.core.errors import UserError
from src.score.metric import score
from src.score.prior import constant, weight_aware_prior
from tests.helpers.score_frames import draw_labels

FIGURES = {"region/test": "region"}


def main(*arguments):
    run_benchmark(
        representation_study.main, representation_study.RepresentationOptions, [*map(str, arguments)]
    )


def options_of(name: str):
    return pretraining(Path("work"), name, 0, "fp32").options


@pytest.mark.parametrize("name", [name for name, row in ALL_ROWS.items() if row.preset])
def test_every_row_shows_as_many_tiles_per_step(name):
    options = options_of(name)
    if isinstance(options, OrganOptions):
        assert 500 <= (options.batch + options.unlabelled_batch) * (SIZE / TILE) ** 2 <= 530
        return
    crops = options.random_crops + options.grid_z * options.grid**2
    assert 500 <= options.batch * crops * options.slices <= 530


def test_the_last_row_of_the_ablation_is_plus():
    last, plus = options_of(list(ABLATION)[-1]), options_of("plus")
    assert last == replace(plus, steps=last.steps, output=last.output)


def piece(row: str, seed: int, by_patient: dict[str, float]) -> dict:
    value = float(np.mean(list(by_patient.values())))
    return {
        "row": row,
        "seed": seed,
        "command": f"command of {row}",
        "seconds": {"pretrain": 100.0},
        "figures": {"region/test": {"value": value, "by_patient": by_patient}},
    }


@pytest.fixture
def pieces(tmp_path) -> Path:
    """Patients p0 to p9: plus is 0.1 better than ImageNet for each of them, on the average of two seeds."""
    rng = np.random.default_rng(0)
    base = {f"p{number}": float(value) for number, value in enumerate(rng.random(10) / 2)}
    for row, seed, gain in (("imagenet", 0, 0), ("imagenet", 1, 0), ("plus", 0, 0.05), ("plus", 1, 0.15)):
        values = {patient: value + gain for patient, value in base.items()}
        (tmp_path / f"{row}-s{seed}.json").write_text(json.dumps(piece(row, seed, values)))
    return tmp_path


def test_difference_line_is_paired_by_patient_and_has_the_t_interval_of_seeds(pieces):
    """Patients differ by far more than the 0.05 and 0.15 of the seeds, but not in their gain."""
    found = representation_tables.read_pieces(pieces)
    line = difference_line(found, "plus", "imagenet", FIGURES)
    low, high = student.interval(0.95, df=1, loc=0.1, scale=0.05)
    assert line["region"] == f"+0.100 [{low:+.3f}, {high:+.3f}]"
    assert mean_line(found, "plus", FIGURES)["seeds"] == 2
    assert difference_line(found, "v2", "imagenet", FIGURES) is None


def test_difference_line_leaves_out_a_seed_that_one_row_lacks(pieces):
    (pieces / "imagenet-s1.json").unlink()
    found = representation_tables.read_pieces(pieces)
    assert difference_line(found, "plus", "imagenet", FIGURES)["region"].startswith("+0.050")
    del found["plus", 0]
    assert difference_line(found, "plus", "imagenet", FIGURES) is None


def test_difference_line_has_an_interval_over_patients(pieces):
    (pieces / "plus-s1.json").unlink()
    path = pieces / "plus-s0.json"
    changed = json.loads(path.read_text())
    by_patient = changed["figures"]["region/test"]["by_patient"]
    by_patient["p0"] += 1  # one patient decides: the interval reaches from none of it to several times
    changed["figures"]["region/test"]["value"] += 1 / len(by_patient)
    path.write_text(json.dumps(changed))
    line = difference_line(representation_tables.read_pieces(pieces), "plus", "imagenet", FIGURES)
    low, high = (float(end) for end in line["region"].split("[")[1].rstrip("]").split(", "))
    assert low == pytest.approx(0.05, abs=0.01) and high > 0.15


def change_figure(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    content["figures"]["region/test"] |= changes
    path.write_text(json.dumps(content))


def join(rounds) -> str:
    return " ".join(map(str, rounds))


def test_difference_line_is_paired_by_resample(pieces):
    """The rounds of a pair differ by 0.1 to 0.3 while those of a row differ by 100; one has no trial.

    Welch's degrees of freedom for the variances of 1 and infinitely many: (0.0025 + 0.2^2 / 12)^2 / 0.0025^2.
    """
    rounds = np.random.default_rng(1).permutation(1000) / 10
    gains = np.linspace(0.1, 0.3, 1000)
    for seed in (0, 1):
        change_figure(pieces / f"imagenet-s{seed}.json", resampled=join(["nan", *rounds[1:]]))
        change_figure(pieces / f"plus-s{seed}.json", resampled=join(rounds + gains))
    line = difference_line(representation_tables.read_pieces(pieces), "plus", "imagenet", FIGURES)
    variance = 0.05**2 + 0.2**2 / 12
    low, high = student.interval(0.95, df=(variance / 0.05**2) ** 2, loc=0.1, scale=variance**0.5)
    assert line["region"] == f"+0.100 [{low:+.3f}, {high:+.3f}]"


def test_mean_line_has_an_interval_of_a_mean_over_patients(pieces):
    (pieces / "imagenet-s1.json").unlink()
    region = mean_line(representation_tables.read_pieces(pieces), "imagenet", FIGURES)["region"]
    value, low, high = (float(part) for part in region.replace("[", "").rstrip("]").replace(",", "").split())
    assert low < value < high
    change_figure(pieces / "imagenet-s0.json", low=0.25, high=0.75)
    region = mean_line(representation_tables.read_pieces(pieces), "imagenet", FIGURES)["region"]
    assert region.endswith("[0.250, 0.750]")


def test_mean_injuries_is_of_patients_with_all_of_them():
    values = {
        target: {"a": 0.5, "b": 0.6 + number / 10, "rsna": number / 10}
        for number, target in enumerate(INJURIES)
    }
    del values["haematoma"]["a"]
    figures = {f"injury/tuned/{target}/harmless": {"by_patient": each} for target, each in values.items()}
    mean = representation_tables.mean_injuries(figures)
    assert list(mean) == ["injury/tuned/mean/harmless", "injury/tuned/unseen/harmless"]
    assert mean["injury/tuned/mean/harmless"]["by_patient"] == pytest.approx({"b": 0.8, "rsna": 0.2})
    assert mean["injury/tuned/mean/harmless"]["value"] == pytest.approx(0.5)
    assert mean["injury/tuned/unseen/harmless"]["by_patient"] == pytest.approx({"rsna": 0.2})


def test_measure_takes_earlier_steps_than_the_last(tmp_path, monkeypatch):
    folder = tmp_path / "work" / "encoders" / "ablation-0-s0"
    folder.mkdir(parents=True)
    for name in ("encoder_0000100", "encoder_0000300", "encoder"):
        (folder / f"{name}.safetensors").touch()
    measured = []

    def measure(options, source, seed, *, is_whole):
        measured.append(source.stem)
        return {"region/test": {"value": 0.5, "by_patient": {}}}

    monkeypatch.setattr(representation_study, "measure_encoder", measure)
    monkeypatch.setattr(Piece, "read_record", lambda piece: {"steps": 300, "seconds": 1.0})
    monkeypatch.setattr(Piece, "is_finished", True)
    arguments = ["--work", tmp_path / "work", "--pieces", tmp_path / "pieces", "--stage", "measure"]
    main(*arguments, "--rows", "ablation-0", "--seeds", "0")
    assert measured == ["encoder", "encoder_0000100"]


def test_steps_line_shows_every_number_of_steps(monkeypatch):
    monkeypatch.setattr(representation_tables, "STEPS", {"region": ("region/test",)})
    early = [{"earlier": {"100": {"region/test": value}}, "steps": 700} for value in (0.2, 0.4)]
    found = {("plus", seed): piece("plus", seed, {"a": 0.8}) | early[seed] for seed in (0, 1)}
    line = steps_line(found, "plus")
    assert line == {"encoder": "`plus` from ImageNet", "steps": "100 / 700", "region": "0.300 / 0.800"}
    assert steps_line(found, "imagenet") is None


def test_a_stepwise_table_compares_each_row_with_the_one_above():
    table = Table("", FIGURES, {"v2": "", "plus": "", "byol": ""}, is_stepwise=True)
    assert table.pairs() == [("plus", "v2"), ("byol", "plus")]


def test_a_table_compares_each_pair_of_rows_once():
    table = Table("", FIGURES, {"imagenet": "", "v2": "", "plus": ""}, bases=("imagenet", "v2"))
    assert table.pairs() == [("v2", "imagenet"), ("plus", "imagenet"), ("plus", "v2")]


def test_main_prints_tables_of_pieces_alone(pieces, capsys):
    main("--table", "--pieces", pieces)
    printed = capsys.readouterr().out
    assert "`plus` from ImageNet" in printed and "command of plus" in printed


def test_main_refuses_unknown_rows_and_no_pieces(tmp_path):
    with pytest.raises(UserError, match="--rows has no best"):
        main("--rows", "best")
    with pytest.raises(UserError, match="no pieces"):
        main("--table", "--pieces", tmp_path)


def test_pretrain_needs_the_stage_data(tmp_path):
    with pytest.raises(UserError, match="run --stage data first"):
        main("--work", tmp_path, "--stage", "pretrain", "--rows", "plus", "--seeds", "0")


def test_task_figures_are_the_score_and_its_parts():
    labels = draw_labels(40, seed=0)
    predicted = constant(weight_aware_prior(labels), labels.patient_id)
    figures = task_figures(labels, predicted)
    assert figures["score"]["value"] == pytest.approx(score(labels, predicted).score)
    assert list(figures["score"]["by_patient"]) == list(labels.patient_id)


def test_predict_gives_every_class_a_probability_though_labels_lack_some():
    labels = draw_labels(30, seed=0)
    known = labels[labels.liver_healthy == 1].head(10)
    index = pd.MultiIndex.from_arrays([labels.patient_id, ["1"] * 30], names=["patient_id", "series_id"])
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 4)), index=index)
    predicted = predict(features, known, labels.patient_id[20:])
    assert predicted.patient_id.tolist() == labels.patient_id[20:].tolist()
    np.testing.assert_allclose(predicted[["liver_healthy", "liver_low", "liver_high"]].sum(axis=1), 1)
    np.testing.assert_allclose(predicted.liver_high, (1 / 3) / 11)


def test_the_document_has_the_tables_of_the_committed_pieces(capsys):
    main("--table")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    document = (ROOT / "docs" / "studies" / "representation.md").read_text(encoding="utf-8").splitlines()
    assert lines and [line for line in lines if line not in document] == []


def test_measure_keeps_the_piece_of_the_same_weights(tmp_path, monkeypatch):
    calls = []

    def measure(options, source, seed, *, is_whole):
        calls.append(source)
        return {"region/test": {"value": 0.5, "by_patient": {}}}

    monkeypatch.setattr(representation_study, "measure_encoder", measure)
    arguments = ["--work", tmp_path / "work", "--pieces", tmp_path / "pieces", "--rows", "imagenet"]
    arguments += ["--seeds", "0", "--stage", "measure"]
    main(*arguments)
    main(*arguments)
    assert calls == ["package"]
    content = json.loads((tmp_path / "pieces" / "imagenet-s0.json").read_text())
    assert content["steps"] == 0 and content["command"].endswith("--rows imagenet --seeds 0")
    assert len(content["code"]) == len(content["data"]) == 16


def test_difference_line_has_no_interval_for_a_figure_that_is_no_mean_over_patients(pieces):
    (pieces / "plus-s1.json").unlink()
    path = pieces / "plus-s0.json"
    changed = json.loads(path.read_text())
    changed["figures"]["region/test"]["value"] += 0.1
    path.write_text(json.dumps(changed))
    line = difference_line(representation_tables.read_pieces(pieces), "plus", "imagenet", FIGURES)
    assert line["region"] == "+0.150"
