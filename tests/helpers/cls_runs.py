"""Run folders of the classifier with random weights."""

from pathlib import Path

import torch

from src.cls.model import ClassifierSpec, TraumaClassifier, save_classifier
from src.cls.second_model import SecondLevel, SecondSpec, save_second_level
from src.cls.views import StackView


def write_network(path: Path, seed: int = 0, in_plane: str = "body", **about: object) -> None:
    """A classifier with random weights, as train_cls.py leaves it."""
    view = StackView(windows=("soft", "organ", "wide"), size=48, slices=4, crop=32, in_plane=in_plane)
    spec = ClassifierSpec("test_efficientnet", view, (0.5,) * 3, (0.25,) * 3, hidden=8)
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(path, TraumaClassifier(spec), spec, **about)


def write_run(run: Path, folds: int = 2) -> Path:
    """A run of train_cls.py: networks, and the other files of a run."""
    for fold in range(folds):
        write_network(run / f"fold{fold}" / "model.safetensors", seed=fold)
        (run / f"fold{fold}" / "last.pt").write_bytes(b"checkpoint")
        (run / f"fold{fold}" / "metrics.csv").write_text("step\n1\n")
    (run / "oof.csv").write_text("patient_id\n1\n")
    (run / "config.yaml").write_text("epochs: 1\n")
    return run


def write_second_run(run: Path) -> Path:
    """A run of the second level: one fold, over the networks of two runs with crops of the liver."""
    fold = run / "fold0"
    for number in range(2):
        write_network(fold / "first" / str(number) / "model.safetensors", number, "liver")
    spec = SecondSpec(features=(5,), hidden=4)
    save_second_level(fold / "second.safetensors", [SecondLevel(spec)], spec)
    (fold / "last.pt").write_bytes(b"checkpoint")
    (run / "features").mkdir()
    (run / "features" / "fold0.safetensors").write_bytes(b"features")
    return run
