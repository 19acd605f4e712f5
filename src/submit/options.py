"""Options of `submit.py`, one dataclass for each of its commands."""

import re
from dataclasses import dataclass
from pathlib import Path

from src.core.config import ROOT, check_range

COMPETITION = "rsna-2023-abdominal-trauma-detection"
KAGGLE_PACKAGES = ROOT / "configs" / "kaggle" / "packages.txt"

LONGEST_HOURS = 8.7
"""The competition stops a notebook after 9 hours, which include installing, checking, and the five minutes
that `infer.py` waits for a GPU that does not answer."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_USER = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class BundleOptions:
    """Options of `submit.py bundle`."""

    models: tuple[Path, ...]
    """run folders of train_cls.py, in the order in which score.py --fit got their tables"""
    output: Path
    """folder to write; an existing bundle is replaced"""
    id: str
    """USER/SLUG of the dataset on Kaggle"""
    title: str
    """title of the dataset on Kaggle, 6 to 50 characters"""
    segmenter: Path | None = None
    """run folder of train_seg.py or its segmenter.safetensors, for models that use organ masks"""
    post: Path | None = None
    """post-processing file of score.py --fit"""
    python: tuple[str, ...] = ("3.11", "3.12")
    """versions of Python to bundle wheels for; Kaggle's current one is enough"""
    kaggle_packages: Path | None = None
    """packages of Kaggle's notebooks in pip freeze format (default: configs/kaggle/packages.txt)"""

    def __post_init__(self) -> None:
        _check_id(self.id, shortest=6)
        if not 6 <= len(self.title) <= 50:
            raise ValueError(f"--title takes 6 to 50 characters, got {len(self.title)}")
        if not self.models:
            raise ValueError("--models takes at least one run folder")
        if not self.python or not all(re.fullmatch(r"3\.\d+", version) for version in self.python):
            raise ValueError(f"--python takes versions such as 3.12, got {' '.join(self.python)}")


@dataclass(frozen=True)
class KernelOptions:
    """Options of `submit.py kernel`."""

    bundle: Path
    """folder of submit.py bundle"""
    id: str
    """USER/SLUG of the notebook on Kaggle; its title is derived from the slug"""
    output: Path
    """folder for the notebook and kernel-metadata.json"""
    gpu: bool = True
    """run on two T4 GPUs; --gpu false runs on the CPU only"""
    competition: str = COMPETITION
    """competition whose test images are predicted"""
    max_hours: float = 8.5
    """time limit of infer.py, at most 8.7; the competition stops a notebook after 9 hours"""
    infer: str = ""
    """further arguments of infer.py, with an equals sign and quotes: --infer="--tta none h" """

    def __post_init__(self) -> None:
        _check_id(self.id, shortest=5)
        if not _SLUG.fullmatch(self.competition):
            raise ValueError(f"--competition takes the last part of its address, got {self.competition!r}")
        check_range(self, "max_hours", above=0, at_most=LONGEST_HOURS)


@dataclass(frozen=True)
class PushOptions:
    """Options of `submit.py push`."""

    bundle: Path
    """folder of submit.py bundle"""
    kernel: Path
    """folder of submit.py kernel"""
    message: str = "pushed by submit.py"
    """note of the dataset's new version"""
    dry_run: bool = False
    """print the commands and run none"""
    poll_seconds: float = 20.0
    """seconds between two status queries"""
    dataset_minutes: float = 60.0
    """maximum minutes to wait for the dataset"""
    kernel_hours: float = 10.0
    """maximum hours to wait for the notebook"""

    def __post_init__(self) -> None:
        check_range(self, "poll_seconds", "dataset_minutes", "kernel_hours", above=0)
        _check_message(self.message)


@dataclass(frozen=True)
class SubmitOptions:
    """Options of `submit.py submit`."""

    version: int
    """version of the notebook, as submit.py push prints it"""
    message: str
    """message beside the submission on Kaggle, followed by the notebook and its version"""
    kernel: Path | None = None
    """folder of submit.py kernel"""
    id: str | None = None
    """USER/SLUG of the notebook, instead of --kernel"""
    competition: str | None = None
    """competition (default: that of the notebook in --kernel, or RSNA 2023)"""
    dry_run: bool = False
    """print the commands and run none"""
    poll_seconds: float = 60.0
    """seconds between two score queries"""
    score_hours: float = 12.0
    """maximum hours to wait for the score"""

    def __post_init__(self) -> None:
        if (self.kernel is None) == (self.id is None):
            raise ValueError("give either --kernel FOLDER or --id USER/KERNEL")
        if self.id is not None:
            _check_id(self.id, shortest=5)
        check_range(self, "version", at_least=1)
        check_range(self, "poll_seconds", "score_hours", above=0)
        _check_message(self.message)


def _check_id(name: str, shortest: int) -> None:
    """Check Kaggle's rules for USER/SLUG, which Kaggle itself checks only after the upload."""
    user, _, slug = name.partition("/")
    if not _USER.fullmatch(user) or not _SLUG.fullmatch(slug) or not shortest <= len(slug) <= 50:
        raise ValueError(
            f"--id takes USER/SLUG, the slug {shortest} to 50 characters of a-z, 0-9 and -, got {name!r}"
        )


def _check_message(message: str) -> None:
    if not message.strip() or len(message.strip().splitlines()) > 1:
        raise ValueError("--message takes one line of text")
