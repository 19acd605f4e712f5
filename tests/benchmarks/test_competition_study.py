"""The study of the competition preset: from phantoms to its table, continued where it stood."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import competition_study
from competition_study import ROWS, CompetitionOptions, plan, without_empty
from harness import run_benchmark

from src.core.config import parse_options
from src.core.errors import UserError

TINY = "--matrix 64 --spacing-z-mm 20 --test-patients 0 --two-phase-rate 0.5"
SMALLEST = (
    *(
        "--backbone",
        "test_efficientnet",
        "--windows",
        "soft",
        "--epochs",
        "1",
        "--batch",
        "4",
        "--lr",
        "1e-3",
    ),
    *("--hidden", "4", "--tta", "none", "--workers", "0", "--first-weights", "none"),
)
SEGMENTER = ("--size", "32", "--windows", "soft", "--steps", "2", "--save-every", "2", "--log-every", "2")


def main(arguments):
    run_benchmark(competition_study.main, CompetitionOptions, arguments)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The command line of a study of seconds."""
    phantoms = {
        "labelled": f"--patients 12 --seed 1 {TINY}",
        "masked": f"--patients 3 --segmentation-rate 1 --seed 2 {TINY}",
    }
    rows = {name: replace(row, first_weights="none") for name, row in ROWS.items()}
    changes = {"PHANTOMS": phantoms, "SIZE": 48, "COMMON": SMALLEST, "ROUNDS": 20, "ROWS": rows}
    changes |= {"SEGMENTER": (*SEGMENTER, "--workers", "0"), "BASELINE": ("--slices", "4", "--crop", "32")}
    small = ("--slices", "4", "--crop", "32", "--offsets", "1", "--organ-slices", "2", "--micro-batch", "0")
    changes |= {"SMALL": (*small, "--layer-decay", "1", "--drop-path", "0", "--masks-from", "predicted")}
    for name, value in changes.items():
        monkeypatch.setattr(competition_study, name, value)
    return ["--work", str(tmp_path / "study"), "--pieces", str(tmp_path / "pieces")]


@pytest.mark.slow
def test_main_writes_pieces_and_prints_their_table(study, tmp_path, capsys):
    with pytest.raises(UserError, match="holds no pieces"):
        main([*study, "--table", "true"])
    chosen = ["--rows", "imagenet", "competition", "no-neighbours", "--seeds", "0"]
    main([*study, *chosen, "--json", str(tmp_path / "study.json")])
    assert len(list((tmp_path / "pieces").glob("*.json"))) == 6
    piece = json.loads((tmp_path / "pieces/competition-s0-f1.json").read_text())
    assert len(piece["predictions"]) == 6 and piece["seconds"] > 0
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [ROWS[name].title for name in chosen[1:4]]
    assert rows[1][f"minus {ROWS['imagenet'].title}"].startswith(("+", "-"))
    printed = capsys.readouterr().out
    main([*study, "--table", "true"])
    assert capsys.readouterr().out.splitlines()[-5:] == printed.splitlines()[-5:]
    main([*study, *chosen, "--stage", "train"])
    assert "6 pieces, 6 of them finished" in capsys.readouterr().out


def test_plan_every_row_changes_the_training(study):
    main([*study, "--stage", "data"])
    planned = plan(parse_options(CompetitionOptions, study, prog="study", description=""))
    assert len(planned) == 2 * sum(len(row.seeds) for row in ROWS.values())
    full = planned["competition", 0, 0].options
    seen = [replace(planned[name, 0, 0].options, output=full.output) for name in ROWS if name != "random"]
    assert all(seen.count(each) == 1 for each in seen)  # the first weights of `random` differ, here alone not
    assert full.slice_loss and full.organ_loss and full.neighbours == 3 and full.image_labels


def test_without_empty_leaves_out_what_a_later_value_takes_away():
    assert without_empty(["--a", "1", "--b", "2", "--a", ""]) == ["--b", "2"]
    assert without_empty(["--a", "1", "--a", "2"]) == ["--a", "1", "--a", "2"]


def test_options_refuse_an_unknown_row(study):
    with pytest.raises(UserError, match="--rows has no luck"):
        main([*study, "--rows", "luck"])
