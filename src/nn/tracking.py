"""Metrics of a training in Weights & Biases (`--track wandb`), besides metrics.csv and TensorBoard events."""

import os
import secrets
from importlib.util import find_spec
from pathlib import Path

import yaml

from src.core.config import Tracking
from src.core.errors import UserError

PROJECT = "2d-voco"
"""Project of the runs, if WANDB_PROJECT does not name another."""

ID_FILE = "wandb_id.txt"
"""File in the folder of a training with the id of its run, which a resumed training continues."""


def require_tracker(track: Tracking) -> None:
    """Check that the package of `--track` is installed.

    Raises:
        ValueError: it is not.
    """
    if track == "wandb" and find_spec("wandb") is None:
        raise ValueError("--track wandb needs the package wandb: pip install wandb")


class WandbWriter:
    """Writes rows of metrics to a run of Weights & Biases, with the options of `config.yaml`.

    Its environment variables apply: WANDB_MODE=offline keeps the run in the folder, to be sent later with
    `wandb sync`.

    Args:
        folder: folder of the training, in the folder with `config.yaml` or below it.

    Raises:
        UserError: the run cannot be created, such as without a login.
    """

    def __init__(self, folder: Path) -> None:
        import wandb  # an optional package

        folder = folder.resolve()
        id_file = folder / ID_FILE
        if not id_file.exists():
            id_file.write_text(secrets.token_hex(8), encoding="utf-8")
        configs = (parent / "config.yaml" for parent in (folder, *folder.parents[:2]))
        config = next((path for path in configs if path.is_file()), None)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=id_file.read_text(encoding="utf-8"),
                resume="allow",
                name="/".join(folder.parts[-2:]),
                dir=folder,
                settings=wandb.Settings(console="off"),  # what is printed stays here
                config=yaml.safe_load(config.read_text(encoding="utf-8")) if config else None,
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--track wandb: {reason}: log in once with `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
