"""segment.py changes only its own files, and ends in one line if something does not fit."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import segment
from src.core.errors import UserError
from src.core.files import discard
from src.nn.encoder import EncoderFile, create_encoder, save_encoder
from src.seg.model import SegmenterPair, load_segmenter, save_segmenter
from src.seg.options import SegmentOptions
from tests.helpers.seg_files import SIZE, content, run_segment, write_masked, write_pair


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set, a model, and the masks of one run."""
    folder = tmp_path_factory.mktemp("segment")
    data, model = write_masked(folder / "set", series=2, slices=4), write_pair(folder / "run")
    assert run_segment(model, data, "--output", folder / "masks").status == 0
    return SimpleNamespace(data=data, model=model, masks=folder / "masks")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Files that the command lines below name."""
    here = tmp_path_factory.mktemp("wrong")
    (here / "junk").write_bytes(b"junk")
    small, strange = write_pair(here / "16px", size=16), write_pair(here / "bone", windows=("soft", "bone"))
    return {"here": here, "small": small, "strange": strange}


def test_segment_replaces_masks_of_another_model_with_overwrite_only(made, tmp_path):
    output = shutil.copytree(made.masks, tmp_path / "masks")
    other = write_pair(tmp_path / "other", seed=6)
    refused = run_segment(made.model, made.data, "--output", output, "--batch", 4)
    assert refused.status == 2 and "made with --batch 16, not 4" in refused.err[0]
    whole = (output / "segmentation.json").read_text()
    for here, there, what in (
        ('"cpu"', '"cuda"', "with another device"),
        ('"fp32"', '"bf16"', "with --precision bf16, not fp32"),
    ):
        assert here in whole
        (output / "segmentation.json").write_text(whole.replace(here, there))
        refused = run_segment(made.model, made.data, "--output", output)
        assert refused.status == 2 and f"made {what}" in refused.err[0]
    (output / "segmentation.json").write_text(whole)
    prepared = shutil.copytree(made.data, tmp_path / "prepared")
    (prepared / "dataset.json").write_text((made.data / "dataset.json").read_text() + "\n")
    refused = run_segment(made.model, prepared, "--output", output)
    assert refused.status == 2 and "made with another preparation of the data" in refused.err[0]
    refused = run_segment(other, made.data, "--output", output)
    assert refused.status == 2 and len(refused.err) == 1
    assert refused.err[0].startswith(f"error: {output} was made with another model")
    assert content(output) == content(made.masks)
    assert run_segment(other, made.data, "--output", output, "--overwrite").status == 0
    assert run_segment(other, made.data, "--output", tmp_path / "fresh").status == 0
    assert content(output) == content(tmp_path / "fresh") != content(made.masks)


@pytest.mark.parametrize("discarded", range(4))
def test_segment_repeats_an_interrupted_overwrite(made, tmp_path, monkeypatch, discarded):
    output = shutil.copytree(made.masks, tmp_path / "masks")
    gone = []

    def discard_some(path):
        if len(gone) == discarded:
            raise KeyboardInterrupt
        gone.append(path)
        discard(path)

    arguments = ("--output", output, "--batch", 4)
    with monkeypatch.context() as patch:
        patch.setattr("src.core.run_folder.discard", discard_some)
        assert run_segment(made.model, made.data, *arguments, "--overwrite").status == 130
    assert run_segment(made.model, made.data, *arguments).status == 2
    assert run_segment(made.model, made.data, *arguments, "--overwrite").status == 0
    assert len(list(output.glob("*/*/*.png"))) == 8


@pytest.mark.parametrize("changes", [[], ["--overwrite"]], ids=str)
def test_segment_never_touches_other_files(made, tmp_path, changes):
    data = shutil.copytree(made.data, tmp_path / "set")
    refused = run_segment(made.model, data, "--output", data, *changes)
    assert refused.status == 2 and len(refused.err) == 1
    assert "holds something else than masks of segment.py" in refused.err[0]
    assert content(data) == content(made.data)


def test_segment_deletes_leftovers_of_a_killed_run(made, tmp_path):
    output = tmp_path / "masks"
    (output / ".10.0123456789ab.partial").mkdir(parents=True)  # of --overwrite
    (output / ".segmentation-abc.json").write_bytes(b"{")
    assert run_segment(made.model, made.data, "--output", output).status == 0
    assert content(output) == content(made.masks)
    for name in ("10/.100.0123456789ab.partial/0000.png", ".organs-abc.csv", "preview/10/.100-abc.png"):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"")
    assert run_segment(made.model, made.data, "--output", output).status == 0
    assert content(output) == content(made.masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "{small}"), "has images of 32 px, the model was trained on 16 px"),
        (("--model", "{strange}"), "has no window bone"),
        (
            ("--model", "{here}/absent"),
            "there is no file {here}/absent: expected a segmentation model of train_seg.py",
        ),
        (("--model", "{here}"), "there is no file {here}/segmenter.safetensors"),
        (("--model", "{here}/junk"), "{here}/junk cannot be read as a segmentation model"),
        (("--data", "{here}"), "{here} is not a prepared data set"),
        (("--series", "{here}/absent.csv"), "no table {here}/absent.csv"),
        (("--output", "{here}/junk"), "cannot make the folder {here}/junk"),
        (("--batch", 0), "--batch must be at least 1"),
        (("--precision", "int4"), "--precision: expected auto, fp32, bf16 or fp16"),
    ],
    ids=str,
)
def test_segment_refuses_what_does_not_fit_in_one_line(made, places, tmp_path, arguments, message):
    arguments = [str(argument).format(**places) for argument in arguments]
    refused = run_segment(made.model, made.data, "--output", tmp_path / "masks", *arguments)
    assert (refused.status, len(refused.err)) == (2, 1), refused.err
    assert refused.err[0].startswith("error: ") and message.format(**places) in refused.err[0]
    assert not (tmp_path / "masks").exists()


def test_load_segmenter_restores_the_saved_pair(made, tmp_path):
    pair, spec = load_segmenter(made.model / "segmenter.safetensors")
    torch.manual_seed(1)
    fresh = SegmenterPair(spec, embedding=4).eval()
    save_segmenter(tmp_path / "fresh.safetensors", fresh, spec)
    loaded, loaded_spec = load_segmenter(tmp_path / "fresh.safetensors")
    assert loaded_spec == spec and not loaded.training
    images = torch.randint(0, 256, (3, SIZE, SIZE, spec.channels), dtype=torch.uint8)
    with torch.inference_mode():
        expected = fresh.to(memory_format=torch.channels_last).probabilities(images)
        assert torch.equal(loaded.probabilities(images), expected)
        assert not torch.equal(pair.probabilities(images), expected)


def test_load_segmenter_refuses_files_of_another_kind(tmp_path):
    about = EncoderFile("test_resnet", 1, (0.5,), (0.25,), ("soft",))
    save_encoder(tmp_path / "encoder.safetensors", create_encoder("test_resnet", 1), about)
    save_file({"weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(UserError, match="is not a segmentation model of train_seg"):
            load_segmenter(path)


def test_segment_help_lists_every_option_and_a_mistake_exits_with_2(tmp_path):
    script = [sys.executable, str(Path(segment.__file__).resolve())]
    help_ = subprocess.run([*script, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    for name in SegmentOptions.__dataclass_fields__:
        assert f"--{name}" in help_.stdout
    refused = subprocess.run([*script, "--modle", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "unknown option --modle; did you mean --model" in refused.stderr
