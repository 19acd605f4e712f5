"""segment.py changes only its own files, and ends in one line if something does not fit."""

import shutil
from types import SimpleNamespace

import pytest

from tests.helpers.folders import files_of
from tests.helpers.seg_files import run_segment, write_masked, write_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set, a model, and the masks of one run."""
    folder = tmp_path_factory.mktemp("segment")
    data, model = write_masked(folder / "set", series=2, slices=4), write_pair(folder / "run")
    assert run_segment(model, data, "--output", folder / "masks").status == 0
    return SimpleNamespace(data=data, model=model, masks=folder / "masks")


@pytest.mark.parametrize(
    ("here", "there", "problem"),
    [
        ('"batch": 16', '"batch": 4', "with --batch 4, not 16"),
        ('"cpu"', '"cuda"', "with another device"),
        ('"fp32"', '"bf16"', "with --precision bf16, not fp32"),
        ('"data": "', '"data": "0', "with another preparation of the data"),
    ],
)
def test_segment_refuses_masks_that_were_made_otherwise(made, tmp_path, here, there, problem):
    output = shutil.copytree(made.masks, tmp_path / "masks")
    record = output / "segmentation.json"
    assert here in record.read_text()
    record.write_text(record.read_text().replace(here, there))
    refused = run_segment(made.model, made.data, "--output", output)
    assert refused.status == 2 and f"made {problem}" in refused.err[0]


def test_segment_replaces_masks_of_another_model_with_overwrite_only(made, tmp_path):
    output = shutil.copytree(made.masks, tmp_path / "masks")
    other = write_pair(tmp_path / "other", seed=6)
    refused = run_segment(other, made.data, "--output", output)
    assert refused.status == 2 and len(refused.err) == 1
    assert refused.err[0].startswith(f"error: {output} was made with another model")
    assert files_of(output) == files_of(made.masks)
    assert run_segment(other, made.data, "--output", output, "--overwrite").status == 0
    assert run_segment(other, made.data, "--output", tmp_path / "fresh").status == 0
    assert files_of(output) == files_of(tmp_path / "fresh") != files_of(made.masks)


def test_segment_never_touches_other_files(made, tmp_path):
    data = shutil.copytree(made.data, tmp_path / "set")
    refused = run_segment(made.model, data, "--output", data, "--overwrite")
    assert refused.status == 2 and len(refused.err) == 1
    assert "contains something other than masks of segment.py" in refused.err[0]
    assert files_of(data) == files_of(made.data)


def test_segment_deletes_leftovers_of_a_killed_run(made, tmp_path):
    output = tmp_path / "masks"
    (output / ".10.0123456789ab.partial").mkdir(parents=True)  # of --overwrite
    (output / ".segmentation-abc.json").write_bytes(b"{")
    assert run_segment(made.model, made.data, "--output", output).status == 0
    assert files_of(output) == files_of(made.masks)
    for name in ("10/.100.0123456789ab.partial/0000.png", ".organs-abc.csv", "preview/10/.100-abc.png"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"")
    assert run_segment(made.model, made.data, "--output", output).status == 0
    assert files_of(output) == files_of(made.masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model {here}/64px", "has images of 32 px, the model was trained on 64 px"),
        ("--model {here}/bone", "has no window bone"),
        ("--model {here}", "there is no file {here}/segmenter.safetensors"),
        ("--series {here}/absent.csv", "no table {here}/absent.csv"),
        ("--output {here}/junk", "cannot make the folder {here}/junk"),
        ("--batch 0", "--batch must be at least 1"),
    ],
)
def test_segment_refuses_what_does_not_fit_in_one_line(made, tmp_path, arguments, message):
    (tmp_path / "junk").write_bytes(b"junk")
    write_pair(tmp_path / "64px", size=64)
    write_pair(tmp_path / "bone", windows=("soft", "bone"))
    given = arguments.format(here=tmp_path).split()
    refused = run_segment(made.model, made.data, "--output", tmp_path / "masks", *given)
    assert (refused.status, len(refused.err)) == (2, 1), refused.err
    assert refused.err[0].startswith("error: ") and message.format(here=tmp_path) in refused.err[0]
    assert not (tmp_path / "masks").exists()
