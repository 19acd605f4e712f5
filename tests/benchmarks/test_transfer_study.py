"""The transfer study on tiny phantoms: every stage, what is kept and refused."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import study_sets
import transfer_study
from harness import run_benchmark
from study_sets import SCRATCH, Start, draw_labelled, take_first_patients
from transfer_study import PRIOR, STAGES, comparisons

from src.core.errors import UserError
from src.core.run_folder import only_writer
from src.data.prepared import PreparedDataset
from src.score.metric import score

pytestmark = pytest.mark.slow

ENCODER = (
    "backbone: test_efficientnet\nwindows: [soft, organ, wide]\ncanvas: 48\ndepth: 6\ntile: 16\nslices: 2\n"
    "batch: 2\nprojection: 8\nsteps: 2\nlog_every: 1\nsave_every: 1\nworkers: 0\n"
)
TINY = "--matrix 64 --spacing-z-mm 20 --two-phase-rate 0.5"
PHANTOMS = {
    "raw": f"--patients 10 --test-patients 3 --seed 1 {TINY}",
    "raw_unlabelled": f"--patients 10 --test-patients 0 --seed 2 {TINY}",
    "raw_probe": f"--patients 1 --test-patients 0 --segmentation-rate 1 --seed 3 {TINY}",
}
CLASSIFIER = (
    "backbone: test_efficientnet\nslices: 4\ncrop: 32\nhidden: 8\nepochs: 1\ntta: [none]\nworkers: 0\n"
)


def main(arguments):
    run_benchmark(transfer_study.main, transfer_study.TransferOptions, arguments)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A finished study of two methods: 10 labelled patients, 3 that are scored, one seed."""
    folder = tmp_path_factory.mktemp("study")
    for name, lr in (("v2", 1e-3), ("plus", 2e-3)):
        (folder / f"{name}.yaml").write_text(f"{ENCODER}lr: {lr}\n")
    (folder / "cls.yaml").write_text(CLASSIFIER)
    arguments = [
        *("--work", f"{folder}/work", "--presets", f"{folder}/v2.yaml", f"{folder}/plus.yaml"),
        *("--unlabelled", "4", "8", "--shares", "0.5", "--seeds", "0", "--json", f"{folder}/study.json"),
        *("--size", "48", "--classifier", f"{folder}/cls.yaml"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_sets, "PHANTOMS", PHANTOMS)
        main(arguments)
        yield SimpleNamespace(folder=folder, work=folder / "work", arguments=arguments)


def figures(study: SimpleNamespace) -> dict:
    return json.loads((study.folder / "study.json").read_text())


def test_main_runs_every_start_and_the_prior(study):
    starts = [run["start"] for run in figures(study)["runs"]]
    assert starts == ["scratch", "prior", "v2-8", "plus-4", "plus-8"]
    assert figures(study)["missing"] == []


def test_measure_scores_the_held_out_patients(study):
    truth = pd.read_csv(study.work / "raw" / "test_labels.csv", dtype={"patient_id": str})
    for run in figures(study)["runs"]:
        if run["start"] == "scratch":
            predicted = pd.read_csv(study.work / "cls/scratch-l50-s0/oof.csv", dtype={"patient_id": str})
            assert run["score"] == pytest.approx(score(truth, predicted).score)
            assert run["classifier_steps"] == 4  # 2 batches, of twice the epochs for half of the labels


def test_draw_labelled_trains_on_no_scored_patient(study):
    scored = set(PreparedDataset.open(study.work / "prepared" / "test").series.patient_id)
    assert len(scored) == 3
    folds = pd.read_csv(study.work / "sets" / "labels-50-s0" / "folds.csv", dtype={"patient_id": str})
    assert set(folds.patient_id[folds.fold == 0]) == scored
    assert (folds.fold == 1).sum() == 5
    for patients in (4, 8):
        seen = PreparedDataset.open(study.work / "sets" / f"unlabelled-{patients}").series.patient_id
        assert seen.nunique() == patients and not scored & set(seen)


def test_main_makes_only_a_lost_piece_again(study, capsys):
    before = {path: path.stat().st_mtime_ns for path in study.work.glob("*/*/piece.json")}
    assert len(before) == 3 + 4
    wanted = figures(study)["runs"]
    lost = study.work / "cls" / "plus-4-l50-s0"
    shutil.rmtree(lost)
    capsys.readouterr()
    main(study.arguments)
    printed = capsys.readouterr().out
    assert "pretrain: 3 pieces, 3 of them finished" in printed
    assert "classify: 4 pieces, 3 of them finished" in printed
    again = {path for path in before if path.stat().st_mtime_ns != before[path]}
    assert again == {lost / "piece.json"}
    for run, other in zip(wanted, figures(study)["runs"], strict=True):
        assert run["score"] == other["score"]


def test_make_all_two_trainings_at_a_time_with_workers(study, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "prepared").symlink_to(study.work / "prepared")
    for name in ("v2", "plus"):
        preset = (study.folder / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(preset.replace("workers: 0", "workers: 1"))
    arguments = ["--presets", f"{tmp_path}/v2.yaml", f"{tmp_path}/plus.yaml", "--work", str(work)]
    main([*study.arguments, *arguments, "--stage", "pretrain", "--jobs", "2"])
    finished = {path.parent.name for path in work.glob("voco/*/piece.json")}
    assert finished == {"v2-8-s0", "plus-4-s0", "plus-8-s0"}


def test_piece_interrupted_continues_and_keeps_the_seconds_before(study):
    piece = study.work / "cls" / "scratch-l50-s0"
    before = json.loads((piece / "piece.json").read_text())
    (piece / "piece.json").unlink()
    main([*study.arguments, "--stage", "classify"])
    after = json.loads((piece / "piece.json").read_text())
    assert before["seconds"] > 0 and after == before


def test_piece_refuses_a_folder_in_use(study):
    piece = study.work / "cls" / "plus-8-l50-s0"
    record = (piece / "piece.json").read_bytes()
    (piece / "piece.json").unlink()
    with (
        only_writer(piece / "fold0"),
        pytest.raises(UserError, match=r"another run is writing to .*plus-8-l50-s0/fold0: wait"),
    ):
        main([*study.arguments, "--stage", "classify"])
    (piece / "piece.json").write_bytes(record)


def test_show_lists_missing_pieces(study, capsys):
    moved = study.folder / "aside"
    (study.work / "cls" / "v2-8-l50-s0").rename(moved)
    try:
        main([*study.arguments, "--stage", "table"])
    finally:
        moved.rename(study.work / "cls" / "v2-8-l50-s0")
    assert "not finished yet: v2-8-l50-s0" in capsys.readouterr().out
    assert figures(study)["missing"] == ["v2-8-l50-s0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--shares 0.3", "--shares takes 1, 0.5, 0.1"),
        ("--seeds 0 0", "--seeds needs at least one value, and none twice"),
        ("--unlabelled 99", "--unlabelled 99: .* has 10 patients"),
        ("--presets configs/voco/demo.yaml", "trains tf_efficientnet_lite0"),
        ("--stage classify --seeds 1", "no encoder .*v2-8-s1/encoder.safetensors: run --stage pretrain"),
        ("--stage table --seeds 1", "no classifier of .* is finished"),
        ("--stage pretrain --work elsewhere", "no prepared set .*unlabelled: run --stage data first"),
    ],
)
def test_main_mistakes_are_one_line(study, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    root = Path(transfer_study.__file__).parents[1]
    changes = changes.replace("configs", f"{root}/configs")
    with pytest.raises(UserError, match=message) as caught:
        main([*study.arguments, *changes.split()])
    assert "\n" not in str(caught.value)


def test_prepare_refuses_a_set_of_another_size(study):
    with pytest.raises(UserError, match="was prepared at 48 px, not 64"):
        main([*study.arguments, "--stage", "data", "--size", "64"])


def test_main_starts_from_first_weights(study, tmp_path, capsys):
    work = tmp_path / "work"
    work.mkdir()
    for name in ("raw", "prepared"):
        (work / name).symlink_to(study.work / name)
    more = "--backbone tf_efficientnet_lite0 --first-weights none package --unlabelled 4"
    preset = f"{study.folder}/plus.yaml"
    main([*study.arguments, "--work", str(work), "--presets", preset, *more.split(), "--stage", *STAGES[1:]])
    starts = [run["start"] for run in figures(study)["runs"]]
    assert starts == ["scratch", "prior", "package", "plus-4", "plus-package-4"]
    log = (work / "voco" / "plus-package-4-s0" / "log.txt").read_text()
    assert "first weights: ImageNet weights of tf_efficientnet_lite0 (package)" in log


def test_piece_refuses_other_options(study):
    other = study.folder / "other.yaml"
    other.write_text(CLASSIFIER.replace("hidden: 8", "hidden: 4"))
    for stage in ("classify", "table"):
        with pytest.raises(UserError, match="was made with other values of hidden: delete"):
            main([*study.arguments, "--stage", stage, "--classifier", str(other)])


def test_piece_failure_names_the_piece_and_its_log(study):
    bad = study.folder / "bad.yaml"
    bad.write_text(CLASSIFIER.replace("crop: 32", "crop: 64"))
    more = f"--shares 1 --stage classify --classifier {bad}"
    with pytest.raises(UserError, match=r"scratch-l100-s0: --crop 64 is larger .*log\.txt"):
        main([*study.arguments, *more.split()])


def test_link_patients_shares_images_and_can_be_moved(study, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(study.work, moved, symlinks=True)
    for name in ("unlabelled-4", "labels-50-s0"):
        drawn = PreparedDataset.open(moved / "sets" / name)
        row = drawn.series.iloc[0]
        images = drawn.folder / "images" / row.patient_id
        assert images.is_symlink() and images.resolve().is_relative_to(moved)
        assert drawn.read_slices(row.patient_id, row.series_id, [0, 1]).shape == (2, 48, 48, 3)


def test_draws_follow_the_seed_and_subsets_are_nested(study):
    drawn = []
    for seed in (0, 0, 1):
        folds = pd.read_csv(draw_labelled(study.work, 0.5, seed) / "folds.csv", dtype={"patient_id": str})
        drawn.append(set(folds.patient_id[folds.fold == 1]))
    assert drawn[0] == drawn[1] != drawn[2]
    small, large = (
        set(PreparedDataset.open(take_first_patients(study.work, n)).series.patient_id) for n in (4, 8)
    )
    assert small < large


def test_comparisons_of_encoders():
    v2, small, large = Start("v2", 8), Start("plus", 4), Start("plus", 8)
    pairs = comparisons([SCRATCH], [v2, small, large])
    assert {other for start, other in pairs if start == large.name} == {SCRATCH.name, v2.name, small.name}
    assert {other for start, other in pairs if start == v2.name} == {SCRATCH.name}
    assert {other for start, other in pairs if start == SCRATCH.name} == {PRIOR}
