"""What the studies share: options, stages, phantoms, and pieces: trainings that are made once and kept."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from harness import begin_process
from joblib import cpu_count
from organ_encoder import OrganOptions, train_organs
from rivals import RivalOptions, train_rival

import prepare_data
from src.cls.options import ClassifierOptions
from src.cls.run import train_folds
from src.core.config import ROOT, Precision, check_range, plain_options
from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import say
from src.core.run_folder import differing_options, only_writer
from src.data import folds as fold_maker
from src.data.prepared import read_description
from src.nn.training import load_checkpoint
from src.phantom import __main__ as phantom
from src.seg.options import SegOptions
from src.seg.run import train_pair
from src.voco.options import VocoOptions
from src.voco.run import pretrain

Key = TypeVar("Key", bound=Hashable)

_TRAININGS = MappingProxyType(
    {
        VocoOptions: pretrain,
        RivalOptions: train_rival,
        ClassifierOptions: train_folds,
        SegOptions: train_pair,
        OrganOptions: train_organs,
    }
)
RECORD = "piece.json"
"""In a piece's folder once it is finished: its options, a digest of its inputs, seconds, steps."""
NO_RESULT = (
    *("data", "labelled", "labels", "folds", "output", "encoder", "image_labels", "cache"),
    *("workers", "resume", "execution"),
)
"""Options that may differ from those of a finished piece: inputs are known by their content."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    work: Path
    """folder of the study: all that it makes, and what it continues from"""
    precision: Precision = "auto"
    """of all trainings, as the training scripts take it; bf16 is faster on CPUs made for it"""
    jobs: int = 1
    """trainings or measurements at a time, with the cores shared among them"""
    json: Path | None = None
    """file for the figures"""

    def __post_init__(self) -> None:
        check_range(self, "jobs", at_least=1)
        if not self.stage:
            raise ValueError("--stage needs at least one value")


@dataclass(frozen=True, kw_only=True)
class TwoFoldOptions(StudyOptions):
    """A study on phantoms in two folds, each predicted by networks of the other."""

    @property
    def raw(self) -> Path:
        return self.work / "labelled"

    @property
    def prepared(self) -> Path:
        return self.work / "prepared_labelled"

    @property
    def folds(self) -> Path:
        return self.work / "folds.csv"


def run_stages(
    options: StudyOptions, stages: Mapping[str, Callable[[], Any]], alone: Collection[str] | None = None
) -> Any:
    """Run the chosen stages in their order.

    Args:
        alone: stages that one process at a time may run in the folder; by default all but the last.

    Returns:
        The result of the last stage, which only reads: a table may be printed while a study is at work. None
        where it is not chosen.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    *making, table = stages
    chosen = [name for name in making if name in options.stage]
    is_alone = any(alone is None or name in alone for name in chosen)
    with only_writer(options.work) if is_alone else nullcontext():
        for name in chosen:
            stages[name]()
    return stages[table]() if table in options.stage else None


def make_phantom(raw: Path, arguments: str) -> None:
    """Make a raw data set; what is there is kept."""
    phantom.main(["--output", str(raw), *arguments.split(), "--jobs", str(cpu_count())])


def prepare(raw: Path, output: Path, size: int, *arguments: str) -> None:
    """Prepare a raw data set in three windows; what is there is kept.

    Raises:
        UserError: the prepared set has another size.
    """
    if (output / "series.csv").is_file():
        made_with = read_description(output)["size"]
        if made_with != size:
            raise UserError(f"{output} was prepared at {made_with} px, not {size}: choose another --work")
        return
    given = ["--input", str(raw), "--output", str(output), "--size", str(size), "--jobs", str(cpu_count())]
    prepare_data.main([*given, "--windows", "soft", "organ", "wide", *arguments])


def make_two_folds(options: TwoFoldOptions, phantoms: Mapping[str, str], size: int) -> None:
    """Make and prepare phantoms, `labelled` among them, and its folds; what is there is kept."""
    for name, arguments in phantoms.items():
        make_phantom(options.work / name, arguments)
        prepare(options.work / name, options.work / f"prepared_{name}", size)
    if not options.folds.is_file():
        tables = ["--labels", str(options.raw / "train.csv")]
        tables += ["--series", str(options.raw / "train_series_meta.csv")]
        fold_maker.main([*tables, "--output", str(options.folds), "--n-folds", "2"])


@dataclass(frozen=True)
class Piece:
    """A run of training, ready to be made."""

    options: VocoOptions | ClassifierOptions | SegOptions
    inputs: tuple[Path, ...]
    """files that its result depends on besides the options"""

    @property
    def folder(self) -> Path:
        return Path(self.options.output)

    @property
    def is_finished(self) -> bool:
        return (self.folder / RECORD).exists()

    def read_record(self) -> dict[str, Any]:
        """What `make` left: options, inputs, steps, and the seconds of these, interrupted or not."""
        return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))

    def make(self) -> None:
        """Run the training, or what an interrupted one left of it; its output goes to `log.txt`.

        Raises:
            UserError: the training's own, a finished piece of other options or data, or a process of a study
                that was killed which is still at work here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.is_finished:
            self.require_same()
        else:
            self._train()

    def _train(self) -> None:
        train: Callable[[Any], Any] = _TRAININGS[type(self.options)]
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            try:
                with redirect_stdout(log), redirect_stderr(log):
                    train(self.options)
            except UserError as error:
                raise UserError(f"{self.folder.name}: {error} (see {log.name})") from None
        ends = [load_checkpoint(path) for path in self._checkpoints()]
        training = {"seconds": sum(end["seconds"] for end in ends), "steps": ends[0]["step"]}
        write_json({**self._identity(), **training}, self.folder / RECORD)

    def _checkpoints(self) -> list[Path]:
        """Of the run, or of each network of its folds."""
        return sorted(self.folder.rglob("last.pt"))

    def require_same(self) -> None:
        """Raises UserError where a finished piece was made with other options or from other inputs."""
        saved, about = self.read_record(), self._identity()
        differing = differing_options(saved["options"], about["options"], NO_RESULT)
        if saved["inputs"] != about["inputs"]:
            differing.append("its data or encoder")
        if differing:
            raise UserError(
                f"{self.folder} was made with other values of {', '.join(differing)}: "
                "delete the folder, or choose another --work"
            )

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self.inputs:
            digest.update(path.read_bytes())
        return {"options": plain_options(self.options), "inputs": digest.hexdigest()}


def digest_code() -> str:
    """Of all files that decide the figures of a study."""
    return digest_files(path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def digest_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def split_finished(planned: Mapping[Key, Piece]) -> tuple[dict[Key, Piece], list[str]]:
    """The finished pieces, and the names of the others.

    Raises:
        UserError: a finished piece of other options or data.
    """
    finished = {key: piece for key, piece in planned.items() if piece.is_finished}
    for piece in finished.values():
        piece.require_same()
    return finished, [piece.folder.name for key, piece in planned.items() if key not in finished]


def make_all(stage: str, planned: Mapping[Key, Piece], jobs: int) -> None:
    """Make all pieces, `jobs` at a time with the cores shared among them, in the order given.

    Raises:
        UserError: an encoder that is not there yet, or as `Piece.make`.
    """
    pieces = list(planned.values())
    for path in (path for piece in pieces for path in piece.inputs):
        if not path.is_file():
            what, stage = ("encoder ", "pretrain") if path.suffix == ".safetensors" else ("", "data")
            raise UserError(f"no {what}{path}: run --stage {stage} first")
    missing = [piece for piece in pieces if not piece.is_finished]
    say(f"{stage}: {len(pieces)} pieces, {len(pieces) - len(missing)} of them finished")
    # not joblib: a process of its pools cannot start the workers that read a training's slices
    spawn, threads = multiprocessing.get_context("spawn"), max(1, cpu_count() // jobs)
    with ProcessPoolExecutor(jobs, spawn, initializer=begin_process, initargs=(threads,)) as pool:
        futures = [pool.submit(piece.make) if jobs > 1 else None for piece in pieces]
        try:
            for number, (piece, future) in enumerate(zip(pieces, futures, strict=True), 1):
                if future:
                    future.result()
                else:
                    piece.make()
                if piece in missing:
                    say(f"{stage} {number}/{len(pieces)}: {piece.folder.name}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
