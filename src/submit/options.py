"""Options of `submit.py`, one dataclass for each of its commands."""

import re
from dataclasses import dataclass
from pathlib import Path

from src.core.config import ROOT

COMPETITION = "rsna-2023-abdominal-trauma-detection"
KAGGLE_PACKAGES = ROOT / "configs" / "kaggle" / "packages.txt"

LONGEST_HOURS = 8.7
"""The competition stops a notebook after 9 hours. Installing, checking, and the five minutes more that
`infer.py` takes where a GPU does not answer have to fit in as well."""

_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_USER = re.compile(r"[A-Za-z0-9_-]+")


def _check_id(name: str, shortest: int) -> None:
    """Kaggle's rules for USER/SLUG, which it tells only after the upload."""
    user, _, slug = name.partition("/")
    if not _USER.fullmatch(user) or not _SLUG.fullmatch(slug) or not shortest <= len(slug) <= 50:
        raise ValueError(
            f"--id takes USER/SLUG, the slug {shortest} to 50 characters of a-z, 0-9 and -, got {name!r}"
        )


@dataclass(frozen=True)
class BundleOptions:
    """What goes into the Kaggle dataset."""

    models: tuple[Path, ...]
    """run folders of train_cls.py, in the order that the post-processing was fitted in"""
    output: Path
    """folder to make; a bundle that is there is replaced"""
    id: str
    """USER/SLUG of the dataset on Kaggle"""
    title: str
    """of the dataset on Kaggle, 6 to 50 characters"""
    segmenter: Path | None = None
    """run folder of train_seg.py, or its segmenter.safetensors: for models that look at organs"""
    post: Path | None = None
    """post-processing of score.py --fit"""
    python: tuple[str, ...] = ("3.11", "3.12")
    """versions of Python that wheels are bundled for: Kaggle's present one is enough"""
    kaggle_packages: Path | None = None
    """what Kaggle's notebooks have, as pip freeze prints it; by default configs/kaggle/packages.txt"""

    def __post_init__(self) -> None:
        _check_id(self.id, shortest=6)
        if not 6 <= len(self.title) <= 50:
            raise ValueError(f"--title takes 6 to 50 characters, got {len(self.title)}")
        if not self.models:
            raise ValueError("--models takes at least one run folder")
        if wrong := [version for version in self.python if not re.fullmatch(r"3\.\d+", version)]:
            raise ValueError(f"--python takes versions such as 3.12, got {' '.join(wrong)}")
        if not self.python:
            raise ValueError("--python takes at least one version")


@dataclass(frozen=True)
class KernelOptions:
    """The notebook that predicts on Kaggle."""

    bundle: Path
    """folder of submit.py bundle"""
    id: str
    """USER/SLUG of the notebook on Kaggle; its title follows from the slug"""
    output: Path
    """folder for the notebook and kernel-metadata.json"""
    gpu: bool = True
    """a notebook with two T4; --gpu false takes the CPU alone"""
    competition: str = COMPETITION
    """whose test images are predicted"""
    max_hours: float = 8.5
    """after which infer.py ends with what it has, at most 8.7; the competition stops a notebook after 9"""
    infer: str = ""
    """further arguments of infer.py, with an equals sign and quotes: --infer="--tta none h" """

    def __post_init__(self) -> None:
        _check_id(self.id, shortest=5)
        if not _SLUG.fullmatch(self.competition):
            raise ValueError(f"--competition takes the last part of its address, got {self.competition!r}")
        if not 0 < self.max_hours <= LONGEST_HOURS:
            raise ValueError(
                f"--max-hours must be above 0 and at most {LONGEST_HOURS}, got {self.max_hours:g}: the "
                "competition stops a notebook after 9 hours, and installing takes its part"
            )


@dataclass(frozen=True)
class PushOptions:
    """Upload the bundle, then the notebook, and run it."""

    bundle: Path
    """folder of submit.py bundle"""
    kernel: Path
    """folder of submit.py kernel"""
    message: str = "pushed by submit.py"
    """note of the dataset's new version"""
    dry_run: bool = False
    """print the commands and run nothing"""
    poll_seconds: float = 20.0
    """between two looks at a status"""
    dataset_minutes: float = 60.0
    """longest wait for Kaggle to make the dataset ready"""
    kernel_hours: float = 10.0
    """longest wait for the notebook"""

    def __post_init__(self) -> None:
        _check_waits(self.poll_seconds, self.dataset_minutes, self.kernel_hours)
        _check_message(self.message)


@dataclass(frozen=True)
class SubmitOptions:
    """Submit a version of the notebook to the competition."""

    version: int
    """of the notebook, as submit.py push shows it"""
    message: str
    """shown beside the submission on Kaggle, with the notebook and its version after it"""
    kernel: Path | None = None
    """folder of submit.py kernel"""
    id: str | None = None
    """USER/SLUG of the notebook, instead of --kernel"""
    competition: str | None = None
    """by default that of the notebook in --kernel, or the RSNA 2023 one"""
    dry_run: bool = False
    """print the commands and run nothing"""
    poll_seconds: float = 60.0
    """between two looks at the score"""
    score_hours: float = 12.0
    """longest wait for the score; Kaggle goes on without us"""

    def __post_init__(self) -> None:
        if (self.kernel is None) == (self.id is None):
            raise ValueError("give either --kernel FOLDER or --id USER/KERNEL")
        if self.id is not None:
            _check_id(self.id, shortest=5)
        if self.version < 1:
            raise ValueError("--version counts from 1")
        _check_message(self.message)
        _check_waits(self.poll_seconds, self.score_hours)


def _check_message(message: str) -> None:
    if not message.strip():
        raise ValueError("--message is empty")
    if len(message.strip().splitlines()) > 1:
        raise ValueError("--message takes one line")


def _check_waits(*values: float) -> None:
    if min(values) <= 0:
        raise ValueError("times to wait must be above 0")
