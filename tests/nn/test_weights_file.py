"""Weights and their description in one file; one error for files that are missing, damaged or foreign."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src.core.errors import UserError
from src.nn.weights_file import read_description, read_weights, save_weights, to_tuples

ROOT = Path(__file__).resolve().parents[2]
KIND = "a model of the tests"


def parse(metadata):
    return to_tuples(metadata["spec"])


def test_read_weights_returns_what_save_weights_wrote(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(3, requires_grad=False)}
    save_weights(tmp_path / "m.safetensors", tensors, spec={"sizes": [1, [2, 3]], "share": 0.1})
    description, read = read_weights(tmp_path / "m.safetensors", KIND, parse)
    assert description == {"sizes": (1, (2, 3)), "share": 0.1}
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in read)


def test_read_description_refuses_missing_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(UserError, match=f"there is no file .*: expected {KIND}"):
        read_description(path, KIND, parse)
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match=f"cannot be read as {KIND}"):
        read_description(path, KIND, parse)
    for metadata in (None, {"format": "pt"}, {"spec": "not JSON"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(UserError, match=f"is not {KIND}"):
            read_description(path, KIND, lambda found: {**found["spec"]})


def test_read_weights_refuses_a_file_that_was_cut(tmp_path):
    path = tmp_path / "m.safetensors"
    save_weights(path, {"a": torch.zeros(100)}, spec={})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"cannot be read as {KIND}"):
        read_weights(path, KIND, parse)


def test_read_description_imports_no_torch(tmp_path):
    save_weights(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, spec={"sizes": [1]})
    code = (
        "import sys; from src.nn.weights_file import read_description as read; "
        f"assert read({str(tmp_path / 'm.safetensors')!r}, '', dict)['spec'] == {{'sizes': [1]}}; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_save_weights_writes_the_same_bytes_again(tmp_path):
    """The library writes several entries of metadata in an order that changes from one call to the next."""
    tensors = {"b": torch.arange(5.0), "a": torch.ones(2, 3, dtype=torch.uint8)}
    contents = set()
    for number in range(20):
        path = tmp_path / f"{number}.safetensors"
        save_weights(path, tensors, spec={"name": "Ä"}, about=[1, 2], key="text", more=None)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    loaded = load_file(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
