"""Tiny run folders, a bundle made by hand, and a kaggle program that records how it is called."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from src.cls.model import ClassifierSpec, TraumaClassifier, save_classifier
from src.cls.second_model import SecondLevel, SecondSpec, save_second_level
from src.cls.views import StackView
from src.submit.bundle import CONTENT, METADATA

DATASET, KERNEL = "someone/trauma-bundle", "someone/trauma-predict"
COMPETITION = "rsna-2023-abdominal-trauma-detection"


def write_network(path: Path, seed: int = 0, in_plane: str = "body", **about: object) -> None:
    """A classifier with random weights, as train_cls.py leaves it."""
    view = StackView(windows=("soft", "organ", "wide"), size=48, slices=4, crop=32, in_plane=in_plane)
    spec = ClassifierSpec("test_efficientnet", view, (0.5,) * 3, (0.25,) * 3, hidden=8)
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(path, TraumaClassifier(spec), spec, **about)


def write_run(run: Path, folds: int = 2) -> Path:
    """A run of train_cls.py with what it leaves besides the networks."""
    for fold in range(folds):
        write_network(run / f"fold{fold}" / "model.safetensors", seed=fold)
        (run / f"fold{fold}" / "last.pt").write_bytes(b"checkpoint")
        (run / f"fold{fold}" / "metrics.csv").write_text("step\n1\n")
    (run / "oof.csv").write_text("patient_id\n1\n")
    (run / "config.yaml").write_text("epochs: 1\n")
    return run


def write_second_run(run: Path) -> Path:
    """A run of the second level: one fold, over the networks of two runs, which look at the liver."""
    fold = run / "fold0"
    for number in range(2):
        write_network(fold / "first" / str(number) / "model.safetensors", number, "liver")
    spec = SecondSpec(features=5, hidden=4)
    save_second_level(fold / "second.safetensors", [SecondLevel(spec)], spec)
    (fold / "last.pt").write_bytes(b"checkpoint")
    return run


def write_segmenter(run: Path) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.zeros(3)}, run / "segmenter.safetensors", metadata={"spec": "{}"})
    (run / "last.pt").write_bytes(b"checkpoint")
    return run


def write_bundle(folder: Path, **changes: object) -> Path:
    """What `kernel` and `push` read of a bundle."""
    folder.mkdir(parents=True)
    content = {
        "dataset": DATASET,
        "models": ["models/0_run", "models/1_other"],
        "segmenter": None,
        "post": "post.json",
        "wheels": {"3.11": ["dicomsdl==0.109.4"], "3.12": ["dicomsdl==0.109.4"]},
        "infer_options": ["--check", "--max-hours", "--precision", "--tta"],
    }
    (folder / CONTENT).write_text(json.dumps(content | changes))
    metadata = {"title": "A bundle", "id": content["dataset"], "licenses": [{"name": "other"}]}
    (folder / METADATA).write_text(json.dumps(metadata))
    return folder


_PROGRAM = """#!{python} -SE
import json, sys
from pathlib import Path
folder = Path({folder!r})
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for command, texts in answers.items():
    if sys.argv[1 : 1 + len(command.split())] == command.split():
        text, status = texts[0] if len(texts) == 1 else texts.pop(0)
        (folder / "answers.json").write_text(json.dumps(answers))
        stream = sys.stdout if status == 0 else sys.stderr
        stream.write(text)
        sys.exit(status)
sys.exit("no answer to " + " ".join(sys.argv[1:]))
"""


class RecordingKaggle:
    """A program named kaggle, first on PATH, that writes down its arguments and gives the answers set.

    `answers`: words that a call begins with -> what it prints, one after the other, the last for ever; text,
    or text and exit status. The first words that fit count.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        folder.mkdir()
        program = folder / "kaggle"
        program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=":")

    def answer(self, answers: dict[str, list]) -> None:
        whole = {
            command: [[each, 0] if isinstance(each, str) else list(each) for each in texts]
            for command, texts in answers.items()
        }
        (self.folder / "answers.json").write_text(json.dumps(whole))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
