"""Options of tiny pre-training runs for the tests."""

import dataclasses
from pathlib import Path

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
