"""Tiny pre-training runs for the tests: their options, and folders of runs that took no step."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from src.core.config import plain_options
from src.core.runtime import torch_seed
from src.voco.model import build_network, make_teacher
from src.voco.options import VocoOptions
from tests.helpers.voco_files import WINDOWS


def make_options(data: Path, output: Path, **changes) -> VocoOptions:
    """Six steps on 48 px canvases, a log line and a checkpoint each step."""
    options = VocoOptions(
        data=(Path(data),),
        output=Path(output),
        steps=6,
        backbone="mobilenetv3_small_050",
        windows=WINDOWS,
        canvas=48,
        depth=6,
        foreground=0.0,
        tile=16,
        slices=2,
        batch=3,
        projection=32,
        warmup=0.2,
        lr=1e-3,
        workers=0,
        log_every=1,
        save_every=1,
    )
    return dataclasses.replace(options, **changes)


def write_frozen_run(folder: Path, **changes: Any) -> Path:
    """A last.pt whose teacher differs from its student, and a patients.csv that names patient 10."""
    geometry = {"canvas": 96, "depth": 4, "tile": 32, "slices": 2, "projection": 8, "foreground": 0.0}
    given = {"backbone": "test_efficientnet", "windows": ("soft", "organ"), **geometry, **changes}
    options = VocoOptions(data=(Path("data"),), output=folder, **given)
    with torch_seed(1):
        student = build_network(options)
    teacher = make_teacher(student, options.shared_backbone)
    with torch_seed(2):
        for parameter in teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder.mkdir(parents=True)
    content = {"options": plain_options(options), "step": 0}
    torch.save(
        content | {"student": student.state_dict(), "teacher": teacher.state_dict()}, folder / "last.pt"
    )
    (folder / "patients.csv").write_text("set,patient_id,series_id\n0,10,100\n")
    return folder
