"""What every script refuses: one line on stderr that names the mistake, exit status 2, no traceback."""

import importlib
from pathlib import Path

import pytest

from src.core.errors import exit_on_user_error

VALID = {
    "prepare_data": "--input {raw} --output {out}",
    "train_voco": "--data {prepared} --output {out}",
    "train_cls": "--data {prepared} --labels {labels} --folds {folds} --output {out}",
    "infer": "--input {raw} --models {out} --sample {sample} --output {out}/submission.csv",
    "score": "--oof {out}/oof.csv --labels {labels}",
}
INPUT = {"prepare_data": "raw", "train_voco": "prepared", "train_cls": "prepared", "infer": "raw"}


@pytest.fixture
def refusal(tiny, tmp_path, capsys):
    """Run a script in this process and return its one line of stderr."""

    def run(script: str, more: str = "", **changes: object) -> str:
        given = {**vars(tiny), "out": tmp_path / "out", **changes}
        argv = [*VALID[script].format(**given).split(), *more.split()]
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped, exit_on_user_error():
            importlib.import_module(script).main(argv)
        lines = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2
        assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in lines[0]
        return lines[0]

    return run


@pytest.mark.parametrize("script", VALID)
def test_unknown_option_is_refused(refusal, script):
    assert "unknown option --learn" in refusal(script, "--learn 3")


@pytest.mark.parametrize("script", VALID)
def test_abbreviated_option_is_refused(refusal, script):
    first = VALID[script].split()[0]
    assert f"did you mean {first}?" in refusal(script, f"{first[:-1]} x")


@pytest.mark.parametrize("script", VALID)
def test_misspelt_key_of_a_preset_is_refused(refusal, script, tmp_path):
    (tmp_path / "preset.yaml").write_text("outputt: 3\n")
    assert "preset.yaml: unknown option outputt" in refusal(script, f"--config {tmp_path}/preset.yaml")


@pytest.mark.parametrize("script", INPUT)
def test_missing_folder_is_refused(refusal, script, tmp_path):
    assert "no folder" in refusal(script, **{INPUT[script]: tmp_path / "nowhere"})


@pytest.mark.parametrize("script", INPUT)
def test_empty_folder_is_refused(refusal, script, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(script, **{INPUT[script]: tmp_path / "empty"})


@pytest.mark.parametrize("script", ["train_cls", "score"])
def test_missing_labels_are_refused(refusal, script, tmp_path):
    assert "no table" in refusal(script, labels=tmp_path / "nothing.csv")


@pytest.mark.parametrize("table", ["labels", "folds"])
def test_labels_or_folds_without_a_patient_are_refused(refusal, tiny, tmp_path, table):
    lines = Path(getattr(tiny, table)).read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert "short.csv has no" in refusal("train_cls", **{table: tmp_path / "short.csv"})
