"""The pieces of a study: one run of train_voco.py, train_seg.py or train_cls.py each, made once and kept."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from joblib import cpu_count
from measuring import begin_process
from study_sets import StudyFolders, draw_labelled, draw_name, take_first_patients

from src.cls.options import ClassifierOptions
from src.cls.run import train_folds
from src.core.checkpoint import load_checkpoint
from src.core.config import parse_options, plain_options
from src.core.errors import UserError
from src.core.files import write_json
from src.core.log import say
from src.core.run_folder import differing_options
from src.seg.options import SegOptions
from src.seg.run import train_pair
from src.voco.options import VocoOptions
from src.voco.run import pretrain

_TRAININGS = MappingProxyType({VocoOptions: pretrain, ClassifierOptions: train_folds, SegOptions: train_pair})
RECORD = "piece.json"
"""In a piece's folder once it is finished: its options, a digest of its inputs, seconds, steps."""
NO_RESULT = (
    *("data", "labelled", "labels", "folds", "output", "encoder", "image_labels", "cache"),
    *("workers", "resume"),
)
"""Options that may differ from those of a finished piece: inputs are known by their content."""
MOST_REPEATS = 2
"""More fit a few patients by heart: with five times the epochs a tenth of the labels
scored far worse than the prior."""


@dataclass(frozen=True)
class Start:
    """What a classifier starts from: random weights, or an encoder of a method and a number of patients."""

    method: str = "scratch"
    unlabelled: int = 0

    @property
    def name(self) -> str:
        return f"{self.method}-{self.unlabelled}" if self.unlabelled else self.method


SCRATCH = Start()


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
        """What `make` left: options, inputs, seconds (None after an interruption) and steps."""
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
        is_resumed = bool(self._checkpoints())
        started = time.perf_counter()
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            try:
                with redirect_stdout(log), redirect_stderr(log):
                    train(self.options)
            except UserError as error:
                raise UserError(f"{self.folder.name}: {error} (see {log.name})") from None
        seconds = None if is_resumed else time.perf_counter() - started
        steps = load_checkpoint(self._checkpoints()[0])["step"]  # of the first of several networks
        write_json({**self._identity(), "seconds": seconds, "steps": steps}, self.folder / RECORD)

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


def pretraining(folders: StudyFolders, start: Start, preset: str, seed: int, precision: str) -> Piece:
    """The pre-training that `start` asks for."""
    data = take_first_patients(folders, start.unlabelled)
    output = folders.work / "voco" / f"{start.name}-s{seed}"
    options = read_preset(preset, data, output, "--seed", str(seed), "--precision", precision)
    return Piece(options, (data / "series.csv",))


def classification(
    folders: StudyFolders, start: Start, config: str, share: float, seed: int, precision: str
) -> Piece:
    """Training from `start` on a share of the labels, and the prediction of the patients that are scored.

    Fewer labels get more epochs, up to `MOST_REPEATS` times as many, and the warm-up its share of them.
    """
    data = draw_labelled(folders, share, seed)
    inputs = [data / name for name in ("series.csv", "labels.csv", "folds.csv")]
    output = folders.work / "cls" / f"{start.name}-l{draw_name(share, seed).split('-')[0]}-s{seed}"
    given = read_classifier(config, data, output)
    repeats = min(round(1 / share), MOST_REPEATS)
    arguments = [
        *("--epochs", str(given.epochs * repeats), "--warmup-epochs", str(given.warmup_epochs * repeats)),
        *("--seed", str(seed), "--fold", "0", "--precision", precision),
    ]
    if start != SCRATCH:
        encoder = folders.work / "voco" / f"{start.name}-s{seed}" / "encoder.safetensors"
        inputs.append(encoder)
        arguments += ["--encoder", str(encoder)]
    return Piece(read_classifier(config, data, output, *arguments), tuple(inputs))


def read_preset(preset: str, data: Path, output: Path, *arguments: str) -> VocoOptions:
    """A preset of train_voco.py, by its name in configs/voco or by its path."""
    path = preset if preset.endswith(".yaml") else f"configs/voco/{preset}.yaml"
    given = ["--config", path, "--data", str(data), "--output", str(output), *arguments]
    return parse_options(VocoOptions, given, prog="train_voco.py", description="")


def read_classifier(config: str, data: Path, output: Path, *arguments: str) -> ClassifierOptions:
    """A preset of train_cls.py with the tables of a drawn set."""
    given = ["--config", config, "--data", str(data), "--labels", str(data / "labels.csv")]
    given += ["--folds", str(data / "folds.csv"), "--output", str(output), *arguments]
    return parse_options(ClassifierOptions, given, prog="train_cls.py", description="")


def make_all(stage: str, pieces: Sequence[Piece], jobs: int) -> None:
    """Make all pieces, `jobs` at a time with the cores shared among them, in the order given.

    Raises:
        UserError: an encoder that is not there yet, or as `Piece.make`.
    """
    for path in (path for piece in pieces for path in piece.inputs):
        if not path.is_file():
            raise UserError(f"no encoder {path}: run --stage pretrain first")
    missing = [piece for piece in pieces if not piece.is_finished]
    say(f"{stage}: {len(pieces)} pieces, {len(pieces) - len(missing)} of them finished")
    for number, piece in enumerate(_made(pieces, jobs), 1):
        if piece in missing:
            say(f"{stage} {number}/{len(pieces)}: {piece.folder.name}")


def _made(pieces: Sequence[Piece], jobs: int) -> Iterator[Piece]:
    """Each piece as soon as it and those before it are made."""
    if jobs == 1:
        for piece in pieces:
            piece.make()
            yield piece
        return
    # not joblib: a process of its pools cannot start the workers that read a training's slices
    threads = max(1, cpu_count() // jobs)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=begin_process, initargs=(threads,)) as pool:
        futures = [pool.submit(piece.make) for piece in pieces]
        try:
            for piece, future in zip(pieces, futures, strict=True):
                future.result()
                yield piece
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
