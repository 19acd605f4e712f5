"""A bundle and a notebook's folder made by hand: what the commands read that take finished ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from src.score.postprocess import PostProcessing, write_post
from src.submit.folders import (
    CONTENT,
    DATASET_METADATA,
    FINGERPRINT,
    KERNEL_METADATA,
    NOTEBOOK,
    verify_bundle,
    write_checksums,
)
from tests.helpers.folders import write_files

DATASET, KERNEL = "someone/trauma-bundle", "someone/trauma-predict"
COMPETITION = "rsna-2023-abdominal-trauma-detection"


def write_bundle(folder: Path, files: Mapping[str, bytes] = MappingProxyType({}), **changes: object) -> Path:
    """A bundle of two runs with post-processing, without their networks.

    Args:
        files: that it holds besides, path -> content.
        changes: of `bundle.json`.
    """
    folder.mkdir(parents=True)
    content = {
        "dataset": DATASET,
        "models": ["models/0_run", "models/1_other"],
        "segmenter": None,
        "post": "post.json",
        "wheels": {"3.11": ["dicomsdl==0.109.4"], "3.12": ["dicomsdl==0.109.4"]},
        "needed": {"packaging": ">=20"},
    } | changes
    (folder / CONTENT).write_text(json.dumps(content))
    write_post(PostProcessing.identity(2), folder / "post.json", ["run", "other"])
    write_files(folder, files)
    write_checksums(folder)
    metadata = {"title": "A bundle", "id": content["dataset"], "licenses": [{"name": "other"}]}
    (folder / DATASET_METADATA).write_text(json.dumps(metadata))
    return folder


def write_kernel(folder: Path, bundle: Path, competition: str = COMPETITION) -> Path:
    """What push and submit read of a notebook's folder."""
    folder.mkdir(parents=True)
    metadata = {"id": KERNEL, "competition_sources": [competition], "dataset_sources": [DATASET]}
    (folder / KERNEL_METADATA).write_text(json.dumps(metadata))
    notebook = {"cells": [], "metadata": {FINGERPRINT: verify_bundle(bundle)}}
    (folder / NOTEBOOK).write_text(json.dumps(notebook))
    return folder
