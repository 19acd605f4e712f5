"""`python -m src.probe` from a run's folder to its figures; on real CT where it is available."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import prepare_data
from src.core.errors import UserError
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from src.phantom import __main__ as phantom
from src.probe import __main__ as probe
from src.probe.options import NetworkOptions
from tests.helpers.encoder_files import write_encoder
from tests.helpers.voco_runs import write_frozen_run

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "ct"
PLACING = [
    f"placing/{geometry}/{kind}/{name}"
    for geometry in ("standard", "own")
    for kind in ("cross", "intra")
    for name in ("features", "features_centred", "projection")
]
Z_POSITION = [f"probe/z_position/{name}/{what}" for name in ("ridge", "knn") for what in ("r2", "mae_mm")]
ORGAN = ["probe/organ/logistic", "probe/organ/knn"]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    """5 patients of the phantom at 48 px, all with masks."""
    folder = tmp_path_factory.mktemp("heldout")
    size = "--patients 5 --test-patients 0 --matrix 96 --spacing-z-mm 12 --segmentation-rate 1"
    phantom.main(f"--output {folder}/raw --seed 3 --jobs 2 --two-phase-rate 0.2 {size}".split())
    prepare_data.main(f"--input {folder}/raw --output {folder}/prepared --size 48 --jobs 2".split())
    return folder / "prepared"


def run_probe(data: Path, run: Path, output: Path, *more: str) -> dict:
    probe.main(["--data", str(data), "--run", str(run), "--json", str(output), *more])
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_frozen_run(tmp_path_factory.mktemp("runs") / "voco")


@pytest.fixture(scope="module")
def found(held_out, run, tmp_path_factory) -> dict:
    return run_probe(held_out, run, tmp_path_factory.mktemp("found") / "out.json")


def test_measure_names_every_figure_with_trials_chance_and_interval(held_out, found):
    assert list(found["figures"]) == [*PLACING, *ORGAN, *Z_POSITION] and found["absent"] == {}
    series = PreparedDataset.open(held_out).series
    draws = -(-400 // (8 * len(series)))
    pairs = sum((series["patient_id"] != patient).sum() for patient in series["patient_id"])
    for name, figure in found["figures"].items():
        assert figure["patients"] == 5 and figure["over"] == "patients"
        assert figure["low"] <= figure["value"] <= figure["high"]
        assert len(figure["by_patient"]) == 5
        if name.startswith("placing"):
            assert figure["chance"] == pytest.approx(1 / 9)
            assert figure["trials"] == 8 * draws * (pairs if "cross" in name else len(series))
    assert found["figures"]["probe/organ/knn"]["chance"] == pytest.approx(1 / (1 + len(ORGANS)))


def test_main_prints_the_same_figures_again(held_out, run, found, tmp_path, capsys):
    assert run_probe(held_out, run, tmp_path / "out.json") == found
    table = capsys.readouterr().out
    assert all(name in table for name in found["figures"]) and "by_patient" not in table


def test_main_measures_a_3d_network(held_out, tmp_path):
    folder = write_frozen_run(tmp_path / "run", backbone="resnet10_3d", tile=16)
    found = run_probe(held_out, folder, tmp_path / "out.json", "--patients", "2")
    assert set(found["figures"]) >= {*PLACING, *ORGAN, *Z_POSITION}


def test_main_measures_an_encoder_by_its_features(held_out, tmp_path, capsys):
    """Without a run there is no head and no geometry of its own; the file names the patients it has seen."""
    seen = PreparedDataset.open(held_out).series["patient_id"].iloc[0]
    write_encoder(tmp_path / "encoder.safetensors", patients=(seen,))
    output = tmp_path / "out.json"
    source = ["--encoder", str(tmp_path / "encoder.safetensors"), "--tile", "16"]
    probe.main(["--data", str(held_out), "--json", str(output), *source])
    figures = json.loads(output.read_text())["figures"]
    features = [name for name in PLACING if "standard" in name and "features" in name]
    assert list(figures) == [*features, *ORGAN, *Z_POSITION]
    assert f"the network has seen 1 of 5 patients ({seen})" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "either --run or --encoder"),
        ("--run a --encoder none", "either --run or --encoder"),
        ("--run a --tile 32", "--tile is for --encoder"),
        ("--run a --windows soft", "--windows is for --encoder"),
        ("--encoder none", "none is no encoder file, which would name its backbone: give --backbone"),
    ],
)
def test_main_refuses_wrong_sources(held_out, given, message):
    with pytest.raises(UserError, match=message):
        probe.main(["--data", str(held_out), *given.split()])


def test_warn_of_seen_names_the_patients(held_out, tmp_path, capsys):
    folder = write_frozen_run(tmp_path / "run")
    series = PreparedDataset.open(held_out).series
    options = NetworkOptions(run=folder)
    probe.warn_of_seen(options, series)
    assert capsys.readouterr().err == ""
    series.tail(1).to_csv(folder / "patients.csv", index=False)
    probe.warn_of_seen(options, series)
    assert f"has seen 1 of 5 patients ({series['patient_id'].iloc[-1]})" in capsys.readouterr().err


def test_measure_gives_reasons_for_a_single_patient_without_masks(tmp_path, held_out, run):
    folder = tmp_path / "one"
    shutil.copytree(held_out, folder)
    shutil.rmtree(folder / "masks")
    found = run_probe(folder, run, tmp_path / "out.json", "--patients", "1")
    assert [name for name in PLACING if "intra" in name] == list(found["figures"])
    assert found["absent"] == {
        "placing/standard/cross": "a single patient",
        "placing/own/cross": "a single patient",
        "probe/organ": "no series has masks",
        "probe/z_position": "a single patient",
    }


def test_main_refuses_wrong_runs_and_options(held_out, run, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        run_probe(held_out, tmp_path / "nothing", tmp_path / "out.json")
    torch.save({"model": {}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint of train_voco"):
        run_probe(held_out, tmp_path, tmp_path / "out.json")
    with pytest.raises(UserError, match="--patients must be at least 1"):
        run_probe(held_out, run, tmp_path / "out.json", "--patients", "0")
    broken = write_frozen_run(tmp_path / "broken")
    saved = torch.load(broken / "last.pt", weights_only=True)
    saved["teacher"]["head.layers.6.bias"].fill_(torch.nan)
    torch.save(saved, broken / "last.pt")
    with pytest.raises(UserError, match="not finite"):
        run_probe(held_out, broken, tmp_path / "out.json")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real CT in ../shared/data/ct")
def test_main_measures_real_ct(tmp_path):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import real_ct

    real_ct.main(["--ct", str(REAL), "--output", str(tmp_path / "ct"), "--size", "96"])
    dataset = PreparedDataset.open(tmp_path / "ct")
    assert dataset.series["patient_id"].tolist() == ["chaos", "rsna", "totalsegmentator"]
    assert not dataset.has_masks("rsna", "1")

    run = write_frozen_run(tmp_path / "run", windows=("soft",))
    found = run_probe(tmp_path / "ct", run, tmp_path / "out.json")
    figures = found["figures"]
    assert figures["placing/standard/cross/projection"]["over"] == "draws"
    assert figures["probe/organ/logistic"]["chance"] == 0.5  # liver against the rest
    assert figures["probe/organ_within/totalsegmentator/knn"]["chance"] == pytest.approx(1 / 6)
    for patient in ("chaos", "totalsegmentator"):
        assert figures[f"probe/organ_auc/liver/{patient}"]["chance"] == 0.5
    assert figures["probe/z_position/ridge/r2"]["patients"] == 3
    with pytest.raises(UserError, match="has no window organ"):
        run_probe(tmp_path / "ct", write_frozen_run(tmp_path / "more"), tmp_path / "out.json")
