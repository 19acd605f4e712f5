"""kernel: the notebook and its metadata, and what is refused before anything is uploaded."""

import ast
import json

import nbformat
import pytest

import submit
from src.core.errors import UserError
from src.submit.folders import verify_bundle
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


def test_kernel_without_a_gpu_warns_of_the_time(tmp_path, capsys):
    metadata, _ = make(tmp_path, "--gpu", "false", "--competition", "another-one")
    assert metadata["enable_gpu"] is False and "machine_shape" not in metadata
    assert (metadata["id"], metadata["dataset_sources"]) == (KERNEL, [DATASET])
    assert metadata["competition_sources"] == ["another-one"]
    assert metadata["is_private"] is True and metadata["enable_internet"] is False
    assert "warning: on a CPU alone 8.5 hours may be too short" in capsys.readouterr().err


def test_kernel_writes_valid_python_without_outputs_the_same_each_time(tmp_path):
    given = "--infer=--tta none h --precision fp16"
    _, notebook = make(tmp_path, given)
    nbformat.validate(notebook)
    for source in code(notebook):
        ast.parse(source)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    names = {}
    exec(code(notebook)[0], names)
    assert (names["DATASET"], names["COMPETITION"]) == (DATASET, COMPETITION)
    assert names["FINGERPRINT"] == verify_bundle(tmp_path / "bundle")
    assert names["ARGUMENTS"] == ["--max-hours", "8.5", "--tta", "none", "h", "--precision", "fp16"]
    (tmp_path / "again").mkdir()
    assert make(tmp_path / "again", given)[1] == notebook


def test_kernel_replaces_a_notebook_and_no_other_folder(tmp_path):
    make(tmp_path, "--max-hours", "2")
    output = str(tmp_path / "kernel")
    again = ["kernel", "--bundle", str(tmp_path / "bundle"), "--id", "someone/other-name", "--output", output]
    submit.main(again)
    metadata = json.loads((tmp_path / "kernel" / "kernel-metadata.json").read_text())
    assert metadata["id"] == "someone/other-name"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="contains something other"):
        submit.main([*again[:-1], str(tmp_path / "mine")])


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--infer=--learn 3"], "infer.py would refuse its options: unknown option --learn"),
        (["--infer=--tta upside"], "infer.py would refuse its options: option --tta"),
        (["--infer=--weights 1 2"], "infer.py would refuse its options: --post has weights of its own"),
        (["--infer=5"], "infer.py would refuse its options: option --max-hours takes one value"),
        (["--infer=--output x.csv"], "--infer must not contain --output"),
        (["--infer=--max-hours=3"], "--infer must not contain --max-hours"),
        (["--infer=--config x.yaml"], "--infer must not contain --config"),
        (["--infer=-h"], "--infer must not contain -h"),
        (["--infer=--tta 'none"], "--infer is not a command line"),
        (["--max-hours", "8.9"], "--max-hours must be above 0 and at most 8.7, got 8.9"),
        (["--id", "someone/Big_Name"], "--id takes USER/SLUG"),
        (["--competition", "https://kaggle.com/c/x"], "--competition takes the last part"),
        (["--bundle", "nowhere"], "nowhere is not a bundle"),
    ],
)
def test_kernel_refuses_with_one_line_and_writes_nothing(tmp_path, monkeypatch, more, part):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=part) as caught:
        submit.main(["kernel", "--bundle", "bundle", "--id", KERNEL, "--output", "kernel", *more])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "kernel").exists()


def test_kernel_counts_weights_against_the_runs_of_the_bundle(tmp_path):
    with pytest.raises(UserError, match="--weights takes a number for each of the 2 --models"):
        make(tmp_path, "--infer=--weights 1 2 3", post=None)
    (tmp_path / "b").mkdir()
    _, notebook = make(tmp_path / "b", "--infer=--weights 1 2", post=None)
    assert '"--weights", "1", "2"' in code(notebook)[0]
