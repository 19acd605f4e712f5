"""Reported cases of messages that did not name the cause, or what to do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from src.core.config import parse_options, save_options
from src.core.errors import UserError
from src.data.labels import read_labels
from src.seg.options import SegOptions
from tests.helpers.score_frames import draw_labels
from tests.helpers.small_shared_memory import run_with_shared_memory
from tests.helpers.voco_files import write_prepared
from tests.helpers.voco_runs import make_options

ROOT = Path(__file__).resolve().parents[2]


FILL = "cat /dev/zero 2>/dev/null >/dev/shm/full"


@pytest.mark.parametrize(("size", "before"), [("1m", FILL), ("100k", "true")], ids=["full", "small"])
def test_case_09_a_full_shared_memory_is_one_line(tmp_path, size, before):
    """A /dev/shm that is full, or has room to start workers but for no batch."""
    data = write_prepared(tmp_path / "data", lambda *_: np.full((64, 64, 3), 128, np.uint8))
    save_options(make_options(data, tmp_path / "run", batch=6, workers=1), tmp_path / "options.yaml")
    command = [sys.executable, "train_voco.py", "--config", tmp_path / "options.yaml"]
    status, _, err = run_with_shared_memory(size, command, before)
    (line,) = err.splitlines()
    assert line.startswith("error: /dev/shm has no room") and "--workers" in line and "--shm-size" in line
    assert status == 2


def read_preset(path, text):
    path.write_text(text)
    argv = ["--config", str(path), "--data", "data", "--output", "run"]
    return parse_options(SegOptions, argv, prog="train_seg.py", description="Train.")


@pytest.mark.parametrize("value", ["[7320]", "[seven, 7320]", "7320"])
def test_case_15_ids_that_yaml_reads_as_numbers_are_to_be_quoted(tmp_path, value):
    reason = r'option --leave-out: .* got \'7320\': put ids and names in quotes, leave_out: \["7320"\]$'
    with pytest.raises(UserError, match=reason):
        read_preset(tmp_path / "preset.yaml", f"leave_out: {value}")
    assert read_preset(tmp_path / "preset.yaml", 'leave_out: ["7320"]').leave_out == ("7320",)


@pytest.mark.parametrize(
    ("separator", "found"), [(";", "'patient_id;bowel"), (", ", "'patient_id', ' bowel")]
)
def test_case_15_labels_with_other_separators_show_their_columns(tmp_path, separator, found):
    (tmp_path / "train.csv").write_text(draw_labels(3).to_csv(index=False).replace(",", separator))
    with pytest.raises(UserError, match=f"lacks the column .*: it has {found}.*, and needs patient_id"):
        read_labels(tmp_path / "train.csv")
