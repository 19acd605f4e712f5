"""What the folder of a notebook for Kaggle tells. No torch: push and submit read it quickly."""

import json
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError

NOTEBOOK, METADATA = "predict.ipynb", "kernel-metadata.json"
FINGERPRINT = "bundle_sha256sums"
"""Among the metadata of the notebook: SHA-256 of the SHA256SUMS that its cells expect."""


@dataclass(frozen=True)
class Kernel:
    """A notebook, and what it is to run with."""

    id: str
    """USER/SLUG"""
    competition: str
    datasets: tuple[str, ...]
    bundle_fingerprint: str
    """of the bundle that it was made for, see `read_fingerprint`"""


def read_kernel(folder: Path) -> Kernel:
    """Read the notebook's folder.

    Raises:
        UserError: it is not one of this version of the kit.
    """
    try:
        told = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        notebook = json.loads((folder / NOTEBOOK).read_text(encoding="utf-8"))
        return Kernel(
            told["id"],
            told["competition_sources"][0],
            tuple(told["dataset_sources"]),
            notebook["metadata"][FINGERPRINT],
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise UserError(
            f"{folder} holds no notebook with {METADATA} of this kit: make it with submit.py kernel"
        ) from None
