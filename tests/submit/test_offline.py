"""A bundle and its notebook, run without a network as on Kaggle, predict what infer.py predicts here."""

import json
import sys
from importlib.metadata import packages_distributions

import numpy as np
import pandas as pd
import pytest
from packaging.utils import canonicalize_name

import infer
import submit
from src.core.errors import UserError
from src.core.targets import COLUMNS, INJURIES
from src.score.postprocess import PostProcessing, write_post
from src.submit.folders import read_bundle
from tests.helpers.cls_runs import write_network
from tests.helpers.infer_runs import train_small
from tests.helpers.kaggle_folders import COMPETITION, DATASET, KERNEL
from tests.helpers.offline_kaggle import (
    EXECUTE,
    leave_out,
    make_environment,
    run_as_on_kaggle,
    upload,
    why_not,
)
from tests.helpers.seg_files import write_pair

pytestmark = pytest.mark.offline
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def namespaces() -> None:
    if reason := why_not():
        leave_out(reason)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run of two folds, one of models that look at the liver, a segmenter, and a post-processing."""
    folder = tmp_path_factory.mktemp("trained")
    train_small(tiny, folder / "run")
    write_network(folder / "organs" / "fold0" / "model.safetensors", in_plane="liver")
    write_pair(folder / "seg", size=48)
    multipliers = dict.fromkeys(INJURIES, 1.0) | {"liver_high": 3.0}
    post = PostProcessing((0.7, 0.3), multipliers=multipliers, any_injury=0.4)
    write_post(post, folder / "post.json", ["run", "organs"])
    return folder


def parts(trained) -> list[str]:
    """Options of both infer.py and submit.py bundle."""
    models = ["--models", f"{trained}/run", f"{trained}/organs", "--segmenter", f"{trained}/seg"]
    return [*models, "--post", f"{trained}/post.json"]


@pytest.fixture(scope="module")
def bundle(namespaces, trained):
    """The bundle, for the Python that runs here."""
    folder = trained / "bundle"
    given = ["--output", str(folder), "--id", DATASET, "--title", "A trauma bundle", "--python", PYTHON]
    try:
        submit.main(["bundle", *parts(trained), *given])
    except UserError as error:
        if "is there a network" in str(error):
            leave_out(f"the wheels cannot be fetched: {error}")
        raise
    return folder


@pytest.fixture(scope="module")
def python(bundle, tmp_path_factory):
    """An environment without what the bundle brings."""
    brought = [line.split("==")[0] for line in read_bundle(bundle).wheels[PYTHON]]
    return make_environment(tmp_path_factory.mktemp("environment") / "venv", brought)


def modules_of(bundle) -> list[str]:
    """How the packages that a bundle brings are imported."""
    brought = {canonicalize_name(line.split("==")[0]) for line in read_bundle(bundle).wheels[PYTHON]}
    owners = packages_distributions().items()
    return sorted(
        name
        for name, owned in owners
        if {canonicalize_name(each) for each in owned} <= brought and name.isidentifier()
    )


def execute(python, bundle, tiny, folder, *, bundle_at: str, data_at: str) -> dict:
    """Run the notebook of the bundle and return what it printed."""
    kernel, working, result = folder / "kernel", folder / "working", folder / "result.json"
    working.mkdir()
    submit.main(
        ["kernel", "--bundle", str(bundle), "--id", KERNEL, "--output", str(kernel), "--gpu", "false"]
    )
    program = folder / "execute.py"
    program.write_text(EXECUTE)
    finished = run_as_on_kaggle(
        [*map(str, (python, program, kernel / "predict.ipynb", result)), *modules_of(bundle)],
        folder / "root",
        (upload(bundle, folder / "dataset"), bundle_at),
        (tiny.raw, data_at),
        working,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(result.read_text())


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"patient_id": str})


def test_notebook_predicts_without_a_network_what_infer_py_predicts_here(
    python, bundle, trained, tiny, tmp_path
):
    modules = modules_of(bundle)
    assert {"dicomsdl", "segmentation_models_pytorch", "jsonargparse"} <= set(modules)
    at = {"bundle_at": "/kaggle/input/trauma-bundle", "data_at": f"/kaggle/input/{COMPETITION}"}
    said = execute(python, bundle, tiny, tmp_path, **at)
    assert said["importable"] == [] and said["interfaces"] == ["lo"], "the machine is not as Kaggle's"
    assert not said["error"], said["error"][-3000:]
    assert "infer.py ended with exit status 0" in said["text"] and " --segmenter " in said["text"]
    assert "out of date" not in said["text"]
    here = ["--input", str(tiny.raw), "--sample", str(tiny.sample), "--output", str(tmp_path / "here.csv")]
    infer.main([*parts(trained), *here])
    expected, there = read(tmp_path / "here.csv"), read(tmp_path / "working" / "submission.csv")
    assert list(there) == list(expected) and list(there.patient_id) == list(expected.patient_id)
    np.testing.assert_allclose(there[list(COLUMNS)], expected[list(COLUMNS)], atol=1e-6)
    assert set(read(tmp_path / "working" / "report.csv").status) == {"ok"}


def test_notebook_finds_newer_mounts_and_logs_a_failure(python, bundle, tiny, tmp_path):
    """The data lack their test images here: infer.py refuses them."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "sample_submission.csv").write_text(tiny.sample.read_text())
    less = type(tiny)(**{**vars(tiny), "raw": tmp_path / "raw"})
    at = {
        "bundle_at": f"/kaggle/input/datasets/{DATASET}",
        "data_at": f"/kaggle/input/competitions/{COMPETITION}",
    }
    said = execute(python, bundle, less, tmp_path, **at)
    assert f"/kaggle/input/datasets/{DATASET}\n" in said["text"]
    assert "error: " in said["text"] and "neither test_images/ nor a prepared data set" in said["text"]
    assert "RuntimeError" in said["error"]
