"""The study of few labels: who teaches, what is continued, and what its tables say."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import segmentation_study
from harness import run_benchmark
from segmentation_study import METHODS, SegStudyOptions, draw_labelled

from src.core.errors import UserError
from src.data.prepared import PreparedDataset

TINY = "--matrix 64 --spacing-z-mm 20 --test-patients 0 --segmentation-rate 1 --two-phase-rate 1 --jobs 1"
TINY_PHANTOMS = {"train": f"--patients 2 --seed 1 {TINY}", "test": f"--patients 1 --seed 2 {TINY}"}
PRESET = """\
backbones: [test_efficientnet, test_resnet]
decoders: [linknet, fpn]
batch: 2
unlabelled_batch: 2
verification: 0.5
pseudo: 1.0
contrast: 0.1
embedding: 8
steps: 2
log_every: 1
save_every: 1
workers: 0
"""


def main(arguments):
    run_benchmark(segmentation_study.main, SegStudyOptions, arguments)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one seed and two shares, made once: its folder and arguments."""
    work = tmp_path_factory.mktemp("study")
    (work / "tiny.yaml").write_text(PRESET)
    arguments = [
        *("--work", str(work), "--seeds", "0", "--shares", "0.25", "0.5", "--ablated", "0.25"),
    ]
    tiny = {"PHANTOMS": TINY_PHANTOMS, "SIZE": 32, "PRESET": str(work / "tiny.yaml")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tiny.items():
            patch.setattr(segmentation_study, name, value)
        main([*arguments, "--json", str(work / "study.json")])
        yield SimpleNamespace(work=work, arguments=arguments)


@pytest.mark.slow
def test_main_trains_and_scores_every_method(study):
    figures = json.loads((study.work / "study.json").read_text())
    runs = pd.DataFrame(figures["runs"])
    assert figures["missing"] == []
    assert set(runs.loc[runs["share"] == 0.25, "method"]) == set(METHODS)
    assert set(runs.loc[runs["share"] == 0.5, "method"]) == {"supervised", "dual"}
    assert runs["labelled"].tolist() == [1] * len(METHODS) + [2, 2]
    assert runs["seconds"].gt(0).all() and runs["dice"].between(0, 1).all()


@pytest.mark.slow
def test_main_methods_share_labels_and_differ_in_terms(study):
    splits, terms = [], {}
    for run in sorted((study.work / "runs").glob("*-0.25-s0")):
        splits.append((run / "split.csv").read_text())
        columns = pd.read_csv(run / "metrics.csv").columns
        terms[run.name.removesuffix("-0.25-s0")] = {
            name for name in ("verification", "pseudo", "contrast") if f"loss_{name}" in columns
        }
    assert len(splits) == len(METHODS) and len(set(splits)) == 1
    assert terms == {
        "supervised": set(),
        "dual": {"verification", "pseudo", "contrast"},
        "without-verification": {"pseudo", "contrast"},
        "without-pseudo-labels": {"verification", "contrast"},
        "without-contrast": {"verification", "pseudo"},
        "verification-alone": {"verification"},
    }


@pytest.mark.slow
def test_main_keeps_finished_runs(study):
    before = {path: path.stat().st_mtime_ns for path in (study.work / "runs").rglob("segmenter.safetensors")}
    main(study.arguments)
    assert len(before) == len(METHODS) + 2
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_draw_labelled_is_nested_and_takes_patients_before_second_series(study, tmp_path):
    dataset = PreparedDataset.open(study.work / "train")
    tables = [
        pd.read_csv(draw_labelled(tmp_path, dataset, share, 3), dtype=str) for share in (0.25, 0.5, 1.0)
    ]
    assert [len(table) for table in tables] == [1, 2, 4]
    assert tables[0].equals(tables[2].head(1)) and tables[1].equals(tables[2].head(2))
    assert tables[1]["patient_id"].is_unique
    draws = {pd.read_csv(draw_labelled(tmp_path, dataset, 0.25, seed)).iloc[0, 1] for seed in range(8)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": (1.5,)}, "between 0 and 1"),
        ({"ablated": (0.3,)}, "among --shares"),
        ({"jobs": 0}, "at least 1"),
    ],
)
def test_options_refuse_mistakes(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        SegStudyOptions(work=tmp_path, **changes)


@pytest.mark.slow
def test_show_refuses_a_study_without_finished_runs(study):
    with pytest.raises(UserError, match=r"no run of .* is finished"):
        main([*study.arguments, "--stage", "table", "--seeds", "9"])
