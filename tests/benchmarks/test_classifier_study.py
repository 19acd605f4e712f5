"""The study of the classifier's features: from phantoms to its table, continued where it stood."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import classifier_study
from classifier_study import FEATURES, ClassifierStudyOptions, plan
from harness import run_benchmark

from src.core.config import parse_options
from src.core.errors import UserError

TINY = "--matrix 64 --spacing-z-mm 20 --test-patients 0 --two-phase-rate 0.5"
PRESET = """\
backbone: test_efficientnet
slices: 4
crop: 32
hidden: 4
epochs: 1
batch: 4
tta: [none]
workers: 0
"""


def main(arguments):
    run_benchmark(classifier_study.main, ClassifierStudyOptions, arguments)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The command line of a study of seconds."""
    monkeypatch.setattr(
        classifier_study,
        "PHANTOMS",
        {
            "labelled": f"--patients 12 --segmentation-rate 1 --seed 1 {TINY}",
            "unlabelled": f"--patients 2 --seed 2 {TINY}",
        },
    )
    (tmp_path / "preset.yaml").write_text(PRESET)
    sizes = {"PRESET": f"{tmp_path}/preset.yaml", "SIZE": 48, "SLICES": 4, "ROUNDS": 20}
    for name, value in sizes.items():
        monkeypatch.setattr(classifier_study, name, value)
    return ["--work", str(tmp_path / "study"), "--json", str(tmp_path / "study.json")]


@pytest.mark.slow
def test_main_trains_compares_and_keeps_features(study, tmp_path, capsys):
    chosen = ["gru", "image-labels", "own-crops-single"]
    with pytest.raises(UserError, match=r"baseline of .* is not finished"):
        main([*study, "--stage", "data", "table", "--features", *chosen])
    main([*study, "--stage", "data", "train", "table", "--features", *chosen])
    figures = json.loads((tmp_path / "study.json").read_text())
    names = [row["name"] for row in figures["runs"]]
    assert names == ["baseline", *chosen, "second-level", "mean"]
    assert "difference" not in figures["runs"][0]
    assert all(row["difference"]["low"] <= row["difference"]["high"] for row in figures["runs"][1:])
    assert "post-processing is left out: too few positives" in capsys.readouterr().out
    main([*study, "--stage", "train", "--features", *chosen])
    assert "4 pieces, 4 of them finished" in capsys.readouterr().out


def test_plan_every_feature_is_an_option_of_the_classifier(study):
    main([*study, "--stage", "data", "--features", "gru"])
    options = parse_options(ClassifierStudyOptions, study, prog="study", description="")
    planned = plan(options)
    assert list(planned) == list(FEATURES)
    baseline = planned["baseline"].options
    assert all(piece.options != baseline for name, piece in planned.items() if name != "baseline")
    assert planned["voco-encoder"].options.encoder in planned["voco-encoder"].inputs


def test_options_refuse_an_unknown_feature(study):
    with pytest.raises(UserError, match="no feature 'luck'"):
        main([*study, "--features", "luck"])
