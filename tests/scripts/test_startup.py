"""Scripts answer at once: --help and score.py load none of the libraries that take seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.score_frames import draw_labels, draw_predictions

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("prepare_data", "train_voco", "train_seg", "segment", "train_cls", "score", "infer", "submit")
HELP = [f"{script}.py --help" for script in SCRIPTS]
HELP += [f"submit.py {command} --help" for command in ("bundle", "kernel", "push", "submit")]


def loaded_by(command: str) -> set[str]:
    """The modules that a script has loaded when it ends."""
    script, *arguments = command.split()
    code = "import runpy, sys\nsys.argv = sys.argv[1:]\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print('modules:', *sys.modules, file=sys.stderr)"
    run = [sys.executable, "-c", code, script, *arguments]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stderr.rpartition("modules:")[2].split())


@pytest.mark.parametrize("command", HELP)
def test_script_help_loads_no_heavy_library(command):
    assert not loaded_by(command) & {"torch", "pandas", "numpy", "sklearn", "scipy", "matplotlib", "cv2"}


def test_score_loads_pandas_alone(tmp_path):
    labels = draw_labels(30)
    labels.to_csv(tmp_path / "labels.csv", index=False)
    draw_predictions(labels).assign(fold=labels.index % 2).to_csv(tmp_path / "oof.csv", index=False)
    loaded = loaded_by(f"score.py --oof {tmp_path}/oof.csv --labels {tmp_path}/labels.csv")
    assert "pandas" in loaded and not loaded & {"torch", "sklearn", "scipy", "matplotlib"}


def test_check_of_a_submission_loads_pandas_alone(tmp_path):
    table = tmp_path / "submission.csv"
    draw_predictions(draw_labels(5)).set_index("patient_id").to_csv(table)
    loaded = loaded_by(f"infer.py --check {table} --sample {table}")
    assert "pandas" in loaded and not loaded & {"torch", "sklearn", "scipy", "matplotlib"}
