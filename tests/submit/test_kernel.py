"""The notebook and its metadata, and what is refused before anything is uploaded."""

import ast
import json

import nbformat
import pytest

import submit
from src.core.errors import UserError
from src.submit.bundle_folder import read_fingerprint
from src.submit.kernel_folder import Kernel, read_kernel
from tests.helpers.kaggle_folders import COMPETITION, DATASET, KERNEL, write_bundle


def make(tmp_path, *more: str, **changes: object) -> tuple[dict, nbformat.NotebookNode]:
    bundle = write_bundle(tmp_path / "bundle", **changes)
    output = tmp_path / "kernel"
    submit.main(["kernel", "--bundle", str(bundle), "--id", KERNEL, "--output", str(output), *more])
    assert sorted(path.name for path in output.iterdir()) == ["kernel-metadata.json", "predict.ipynb"]
    metadata = json.loads((output / "kernel-metadata.json").read_text())
    return metadata, nbformat.read(output / "predict.ipynb", as_version=4)


def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_private_without_internet_and_has_its_inputs(tmp_path):
    metadata, _ = make(tmp_path)
    assert metadata == {
        "id": KERNEL,
        "title": "Trauma Predict",
        "code_file": "predict.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "dataset_sources": [DATASET],
        "competition_sources": [COMPETITION],
        "kernel_sources": [],
        "model_sources": [],
        "machine_shape": "NvidiaTeslaT4",
    }


def test_without_a_gpu_no_gpu_is_asked_for_and_time_may_be_short(tmp_path, capsys):
    metadata, _ = make(tmp_path, "--gpu", "false", "--competition", "another-one")
    assert metadata["enable_gpu"] is False and "machine_shape" not in metadata
    assert metadata["competition_sources"] == ["another-one"]
    assert "warning: on a CPU alone 8.5 hours may be too short" in capsys.readouterr().err


def test_with_a_gpu_nothing_is_said_of_time(tmp_path, capsys):
    make(tmp_path)
    assert capsys.readouterr().err == ""


def test_the_notebook_is_valid_python_without_outputs_and_the_same_each_time(tmp_path):
    given = "--infer=--tta none h --precision fp16"
    _, notebook = make(tmp_path, given)
    nbformat.validate(notebook)
    for source in code(notebook):
        ast.parse(source)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    names = {}
    exec(code(notebook)[0], names)
    assert (names["DATASET"], names["COMPETITION"]) == (DATASET, COMPETITION)
    assert names["FINGERPRINT"] == read_fingerprint(tmp_path / "bundle")
    assert names["ARGUMENTS"] == ["--max-hours", "8.5", "--tta", "none", "h", "--precision", "fp16"]
    (tmp_path / "again").mkdir()
    assert make(tmp_path / "again", given)[1] == notebook


def test_push_and_submit_read_what_the_notebook_is_for(tmp_path):
    make(tmp_path)
    fingerprint = read_fingerprint(tmp_path / "bundle")
    assert read_kernel(tmp_path / "kernel") == Kernel(KERNEL, COMPETITION, (DATASET,), fingerprint)


def test_pip_may_neither_look_elsewhere_nor_replace_requirements(tmp_path):
    (install,) = [source for source in code(make(tmp_path)[1]) if '"install"' in source]
    assert '"--no-index", "--no-deps", "--find-links"' in install


def test_a_notebook_that_is_there_is_replaced_and_other_folders_are_left_alone(tmp_path):
    make(tmp_path, "--max-hours", "2")
    output = str(tmp_path / "kernel")
    again = ["kernel", "--bundle", str(tmp_path / "bundle"), "--id", "someone/other-name", "--output", output]
    submit.main(again)
    metadata = json.loads((tmp_path / "kernel" / "kernel-metadata.json").read_text())
    assert metadata["id"] == "someone/other-name"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        submit.main([*again[:-1], str(tmp_path / "mine")])


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--infer=--learn 3"], "infer.py would refuse its options: unknown option --learn"),
        (["--infer=--tta upside"], "infer.py would refuse its options: --tta takes"),
        (["--infer=--jobs many"], "infer.py would refuse its options: option --jobs: expected int"),
        (["--infer=--weights 1 2"], "infer.py would refuse its options: --post has weights of its own"),
        (["--infer=5"], "infer.py would refuse its options: option --max-hours takes one value"),
        (["--infer=--output x.csv"], "--infer must not hold --output"),
        (["--infer=--max-hours=3"], "--infer must not hold --max-hours"),
        (["--infer=--config x.yaml"], "--infer must not hold --config"),
        (["--infer=--help"], "--infer must not hold --help"),
        (["--infer=-h"], "--infer must not hold -h"),
        (["--infer=--check x.csv"], "--infer must not hold --check"),
        (["--infer=--tta 'none"], "--infer is not a command line"),
        (["--max-hours", "0"], "--max-hours must be above 0 and at most 8.7, got 0"),
        (
            ["--max-hours", "8.9"],
            "--max-hours must be above 0 and at most 8.7, got 8.9: the competition stops",
        ),
        (["--id", "no-user"], "--id takes USER/SLUG"),
        (["--id", "someone/Big_Name"], "--id takes USER/SLUG"),
        (["--competition", "https://kaggle.com/c/x"], "--competition takes the last part"),
        (["--bundle", "nowhere"], "nowhere is not a bundle"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(tmp_path, monkeypatch, more, part):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=part) as caught:
        submit.main(["kernel", "--bundle", "bundle", "--id", KERNEL, "--output", "kernel", *more])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "kernel").exists()


def test_a_bundle_that_was_changed_is_refused(tmp_path):
    make(tmp_path)
    (tmp_path / "bundle" / "post.json").write_text("{}")
    again = ["kernel", "--bundle", str(tmp_path / "bundle"), "--id", KERNEL]
    with pytest.raises(UserError, match=r"post.json was changed or removed: make the bundle again"):
        submit.main([*again, "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_weights_are_counted_against_the_runs_of_the_bundle(tmp_path):
    with pytest.raises(UserError, match="--weights takes a number for each of the 2 --models"):
        make(tmp_path, "--infer=--weights 1 2 3", post=None)
    (tmp_path / "b").mkdir()
    _, notebook = make(tmp_path / "b", "--infer=--weights 1 2", post=None)
    assert '"--weights", "1", "2"' in code(notebook)[0]
