"""What every script refuses: one line on stderr that names the mistake, exit status 2, no traceback."""

import importlib
from pathlib import Path

import pytest

from src.core.errors import exit_on_user_error

VALID = {
    "prepare_data": "--input {raw} --output {out}",
    "train_voco": "--data {prepared} --output {out}",
    "train_seg": "--data {prepared} --output {out}",
    "segment": "--data {prepared} --model {out}",
    "train_cls": "--data {prepared} --labels {labels} --folds {folds} --output {out}",
    "infer": "--input {raw} --models {out} --sample {sample} --output {out}/submission.csv",
    "score": "--oof {out}/oof.csv --labels {labels}",
}
INPUT = {
    "prepare_data": "raw",
    **dict.fromkeys(("train_voco", "train_seg", "train_cls"), "prepared"),
    "infer": "raw",
}


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
def test_main_refuses_an_abbreviated_option(refusal, script):
    first = VALID[script].split()[0]
    assert f"did you mean {first}?" in refusal(script, f"{first[:-1]} x")


@pytest.mark.parametrize("script", INPUT)
def test_main_refuses_a_missing_folder(refusal, script, tmp_path):
    assert "no folder" in refusal(script, **{INPUT[script]: tmp_path / "nowhere"})


@pytest.mark.parametrize("script", sorted(INPUT.keys() - {"infer"}))  # which opens the models first
def test_main_refuses_an_empty_folder(refusal, script, tmp_path):
    (tmp_path / "none").mkdir()
    problem = "no CT in" if script == "prepare_data" else "is not a prepared data set"
    assert problem in refusal(script, **{INPUT[script]: tmp_path / "none"})


@pytest.mark.parametrize("script", ["train_cls", "score"])
def test_main_refuses_missing_labels(refusal, script, tmp_path):
    assert "no table" in refusal(script, labels=tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("table", "problem"),
    [("labels", "has no row for 1 patients"), ("folds", "has no fold for 1 of 10 patients")],
)
def test_train_cls_refuses_tables_that_lack_a_patient(refusal, tiny, tmp_path, table, problem):
    lines = Path(getattr(tiny, table)).read_text().splitlines()
    (tmp_path / "short.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert f"short.csv {problem}" in refusal("train_cls", **{table: tmp_path / "short.csv"})
