"""Metrics in Weights & Biases, without its servers: a run that is kept on disk."""

import struct

import pytest

import train_cls
from src.core.errors import UserError
from tests.helpers.training_runs import interrupted_after_saves

pytest.importorskip("wandb")
from wandb.proto import wandb_internal_pb2

BLOCK = 32768


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def read_records(path):
    """Records of the file of an offline run: a header of 7 bytes, then blocks of a LevelDB log."""
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # a header does not fit: padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def read_rows(folder):
    """Rows of metrics of offline runs, and the ids of the runs."""
    rows, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in read_records(path):
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
            elif record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
    return rows, ids


def test_track_wandb_writes_the_rows_of_metrics_csv(offline, run_arguments, tmp_path):
    train_cls.main(run_arguments(fold="0", track="wandb"))
    folder = tmp_path / "run/fold0"
    rows, ids = read_rows(folder)
    table = (folder / "metrics.csv").read_text().splitlines()
    names = table[0].split(",")
    assert [int(row["_step"]) for row in rows] == [1, 2]
    for row, line in zip(rows, table[1:], strict=True):
        written = dict(zip(names, map(float, line.split(",")), strict=True))
        assert float(row["loss"]) == pytest.approx(written["loss"])
        assert set(names) - {"step"} <= row.keys()
    assert ids == {(folder / "wandb_id.txt").read_text()}


def test_track_wandb_continues_the_run_of_an_interrupted_training(offline, run_arguments, tmp_path):
    with interrupted_after_saves():
        train_cls.main(run_arguments(fold="0", track="wandb"))
    train_cls.main(run_arguments(fold="0", track="wandb"))
    rows, ids = read_rows(tmp_path / "run/fold0")
    assert len(ids) == 1 and {int(row["_step"]) for row in rows} == {1, 2}


def test_track_wandb_without_its_package_is_refused_in_one_line(run_arguments, monkeypatch):
    monkeypatch.setattr("src.nn.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track wandb needs the package wandb: pip install wandb"):
        train_cls.main(run_arguments(fold="0", track="wandb"))
