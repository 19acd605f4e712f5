"""Body regions of single slices: which slices and patients are fitted on and measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import region_probe
from harness import run_benchmark
from region_probe import GROUPS, measure_regions, network_input, read_slices, score_regions

from src.core.errors import UserError
from src.probe.frozen import load_encoder
from tests.helpers.encoder_files import write_encoder

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ct" / "slices"
REGIONS = ("abdomen", "pelvis", "thorax")


def write_slices(folder: Path, by_level: bool = True) -> Path:
    """12 patients of TCGA and 4 of SBU with a slice of each region, of its own grey level if `by_level`.

    Slice 0 of TCGA is unsure and slice 4 is a copy of slice 1.
    """
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, patients in (("tcga_lung_100", 12), ("covid19_ny_sbu_20", 4)):
        region = np.tile(REGIONS, patients)
        level = np.tile([-100, 50, 200], patients) if by_level else np.zeros(len(region))
        hu = (level[:, None, None] + rng.normal(0, 20, (len(region), 64, 64))).astype(np.int16)
        unsure = np.zeros(len(region), dtype=bool)
        arrays = {"hu": hu, "region": region, "patient": np.repeat(np.arange(patients, dtype=np.int16), 3)}
        if name.startswith("tcga"):
            unsure[0] = True
            arrays["duplicate_of"] = np.where(np.arange(len(region)) == 4, 1, -1).astype(np.int16)
        np.savez(folder / f"{name}.npz", unsure=unsure, **arrays)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_slices(tmp_path_factory.mktemp("regions") / "slices")


@pytest.fixture(scope="module")
def net():
    return load_encoder("none", tile=16, backbone="test_efficientnet")


def test_read_slices_excludes_copies_and_unsure_labels(folder):
    slices = read_slices(folder)
    assert len(slices.hu) == 36 - 2 + 12
    assert (slices.patient == "tcga 0").sum() == 2 and (slices.patient == "tcga 1").sum() == 2
    development = set(slices.patient[slices.group == "development"])
    assert development == {f"tcga {number}" for number in range(0, 12, 2)}
    assert set(slices.patient[slices.group == "test"]) == {
        *(f"tcga {number}" for number in range(1, 12, 2)),
        *(f"sbu {number}" for number in range(4)),
    }


def test_measure_regions_of_slices_that_differ(folder, net):
    figures = measure_regions(net, folder, seed=0)
    assert list(figures) == [f"{kind}/{group}" for group in GROUPS for kind in ("region", "region_auc")]
    for name, figure in figures.items():
        patients, trials = (6, 17) if name.endswith("development") else (10, 29)
        assert figure.value > 0.9 and figure.chance == pytest.approx(0.5 if "auc" in name else 1 / 3)
        assert (figure.patients, figure.trials, figure.over) == (patients, trials, "patients")
        assert len(figure.by_patient) == patients


def test_measure_regions_of_slices_that_are_alike(tmp_path, net):
    figures = measure_regions(net, write_slices(tmp_path / "slices", by_level=False), seed=0)
    assert all(0.2 < figure.value < 0.7 for figure in figures.values())


def test_score_regions_fits_on_all_other_patients(folder):
    """Features name the region; one patient's regions are called otherwise than all others'."""
    slices = read_slices(folder)
    of_odd = slices.patient == "tcga 2"
    features = np.stack([slices.region == name for name in REGIONS], axis=1).astype(np.float32)
    features[of_odd] = np.roll(features[of_odd], 1, axis=1)
    score = score_regions(features, slices, np.array(["tcga 2", "tcga 4"]))
    is_right = slices.regions[score.argmax(axis=1)] == slices.region
    assert not is_right[of_odd].any() and is_right[slices.patient == "tcga 4"].all()
    assert not score[~np.isin(slices.patient, ["tcga 2", "tcga 4"])].any()


def test_network_input_shows_the_windows_and_the_slice_as_its_neighbours(tmp_path):
    path, two = tmp_path / "encoder.safetensors", (0.5, 0.5)
    write_encoder(path, windows=("soft", "wide"), neighbours=3, mean=two, std=two)
    net = load_encoder(path, tile=32)
    images = network_input(net, np.full((2, 64, 64), 150, dtype=np.int16))
    assert images.shape == (2, 1, 96, 96, 6)
    assert images[0, 0, 0, 0].tolist() == [191, 164] * 3
    volume = load_encoder("none", tile=8, backbone="resnet10_3d")
    assert network_input(volume, np.zeros((2, 64, 64), dtype=np.int16)).shape == (2, 8, 24, 24, 1)


def test_main_measures_development_patients_by_default(folder, tmp_path):
    path = tmp_path / "found.json"
    given = ["--encoder", "none", "--backbone", "test_efficientnet", "--tile", "16", "--json", str(path)]
    run_benchmark(region_probe.main, region_probe.RegionOptions, ["--slices", str(folder), *given])
    figures = json.loads(path.read_text())["figures"]
    assert list(figures) == ["region/development", "region_auc/development"]
    assert len(figures["region/development"]["by_patient"]) == 6
    with pytest.raises(UserError, match="no tcga_lung_100"):
        run_benchmark(region_probe.main, region_probe.RegionOptions, ["--slices", str(tmp_path), *given])


@pytest.mark.skipif(not REAL.is_dir(), reason="no single slices in ../shared/data/ct")
def test_measure_regions_of_real_slices(net):
    slices = read_slices(REAL)
    assert len(slices.hu) == 120 - 6 - 10  # of the unsure ones, one is also a copy
    accuracy, area = measure_regions(net, REAL, 0, ("development",)).values()
    assert (accuracy.chance, area.chance) == (0.25, 0.5) and accuracy.patients == len(accuracy.by_patient)
    assert accuracy.trials == area.trials == (slices.group == "development").sum()
