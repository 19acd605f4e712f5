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
    return sorted(
        name
        for name, owners in packages_distributions().items()
        if {canonicalize_name(each) for each in owners} <= brought and name.isidentifier()
    )


def test_notebook_predicts_without_a_network_what_infer_py_predicts_here(
    python, bundle, trained, tiny, tmp_path
):
    modules = modules_of(bundle)
    assert {"dicomsdl", "segmentation_models_pytorch", "jsonargparse"} <= set(modules)
    kernel, working, program = tmp_path / "kernel", tmp_path / "working", tmp_path / "execute.py"
    submit.main(f"kernel --bundle {bundle} --id {KERNEL} --output {kernel} --gpu false".split())
    working.mkdir()
    program.write_text(EXECUTE)
    finished = run_as_on_kaggle(
        [*map(str, (python, program, kernel / "predict.ipynb", tmp_path / "result.json")), *modules],
        tmp_path / "root",
        (upload(bundle, tmp_path / "dataset"), "/kaggle/input/trauma-bundle"),
        (tiny.raw, f"/kaggle/input/{COMPETITION}"),
        working,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["importable"] == [] and result["interfaces"] == ["lo"], "the machine is not as Kaggle's"
    assert not result["error"], result["error"][-3000:]
    assert "infer.py ended with exit status 0" in result["text"] and " --segmenter " in result["text"]
    assert "out of date" not in result["text"]
    here = ["--input", str(tiny.raw), "--sample", str(tiny.sample), "--output", str(tmp_path / "here.csv")]
    infer.main([*parts(trained), *here])
    files = (tmp_path / "here.csv", working / "submission.csv", working / "report.csv")
    expected, there, report = (pd.read_csv(path, dtype={"patient_id": str}) for path in files)
    assert list(there) == list(expected) and list(there.patient_id) == list(expected.patient_id)
    np.testing.assert_allclose(there[list(COLUMNS)], expected[list(COLUMNS)], atol=1e-6)
    assert set(report.status) == {"ok"}
