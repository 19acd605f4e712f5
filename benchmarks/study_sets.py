"""What the transfer and the representation study share: data sets, encoders and classifiers of one folder."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from harness import read_preset
from study import Piece, make_phantom, prepare

from src.cls.options import ClassifierOptions
from src.core.errors import UserError
from src.core.files import whole_folder, write_json, write_table
from src.core.targets import COLUMNS
from src.data.folds import make_folds
from src.data.labels import read_labels, read_probabilities
from src.data.prepared import PreparedDataset, image_folder, read_description
from src.voco.options import VocoOptions

PHANTOMS = {
    "raw": "--patients 200 --test-patients 300 --seed 1",
    "raw_unlabelled": "--patients 400 --test-patients 0 --seed 2",
    "raw_probe": "--patients 40 --test-patients 0 --segmentation-rate 1 --seed 3",
}
PREPARED = {
    "train": ("raw", "--split", "train"),
    "test": ("raw", "--split", "test"),
    "unlabelled": ("raw_unlabelled",),
    "probe": ("raw_probe",),
}
"""Prepared sets: the phantom of each, and further options of prepare_data.py."""
SIZE = 144
"""Default side of the prepared images in pixels."""
ENCODER = "encoder.safetensors"
MAX_REPEATS = 2
"""More overfit: with five times the epochs a tenth of the labels scored far worse than the prior."""


@dataclass(frozen=True)
class Start:
    """What a classifier starts from: first weights, or the encoder of a preset and a number of patients."""

    preset: str = ""
    """name in configs/voco, or path"""
    unlabelled: int = 0
    first_weights: str = "none"
    """of the encoder, or without one of the classifier"""

    @property
    def name(self) -> str:
        if not self.unlabelled:
            return "scratch" if self.first_weights == "none" else self.first_weights
        first = () if self.first_weights == "none" else (self.first_weights,)
        return "-".join((Path(self.preset).stem, *first, str(self.unlabelled)))

    def classifier_source(self, work: Path, seed: int) -> Path | str:
        """The encoder that a classifier starts from, or its first weights."""
        return work / "voco" / f"{self.name}-s{seed}" / ENCODER if self.unlabelled else self.first_weights


SCRATCH = Start()


def make_data(work: Path, size: int, sets: Collection[str] = tuple(PREPARED)) -> None:
    """Make and prepare the phantoms of `sets` at `size` pixels; what is there is kept."""
    for name in sets:
        raw, *arguments = PREPARED[name]
        make_phantom(work / raw, PHANTOMS[raw])
        prepare(work / raw, work / "prepared" / name, size, *arguments)


def open_prepared(work: Path, name: str) -> PreparedDataset:
    """Raises UserError where the stage `data` has not been run."""
    folder = work / "prepared" / name
    if not (folder / "series.csv").is_file():
        raise UserError(f"no prepared set {folder}: run --stage data first")
    return PreparedDataset.open(folder)


def take_first_patients(work: Path, patients: int) -> Path:
    """A prepared set of the first `patients` unlabelled patients; a larger one contains a smaller one.

    Raises:
        UserError: there are not so many.
    """
    source = open_prepared(work, "unlabelled")
    known = source.series.patient_id.drop_duplicates()
    if patients > len(known):
        raise UserError(f"--unlabelled {patients}: {source.folder} has {len(known)} patients")
    return link_patients(work / "sets" / f"unlabelled-{patients}", [source], set(known.head(patients)))


def draw_labelled(work: Path, share: float, seed: int) -> Path:
    """A prepared set of a stratified share of the training patients and of all test patients.

    Its folds.csv puts the test patients into fold 0 and the drawn ones into fold 1, so that
    `train_cls.py --fold 0` trains on the draw and predicts the rest. A draw depends on the share and the seed
    alone: all methods see the same patients.
    """
    train, test = open_prepared(work, "train"), open_prepared(work, "test")
    labels, test_labels = (read_labels(work / "raw" / f"{name}.csv") for name in ("train", "test_labels"))
    if share < 1:
        series_counts = train.series.groupby("patient_id").size().reindex(labels.patient_id, fill_value=0)
        draws = make_folds(labels, series_counts, n_folds=round(1 / share), seed=seed)
        labels = labels[labels.patient_id.isin(draws.patient_id[draws.fold == 0])]
    every = pd.concat([labels, test_labels], ignore_index=True)
    folds = pd.DataFrame({"patient_id": every.patient_id, "fold": [1] * len(labels) + [0] * len(test_labels)})
    output = work / "sets" / f"labels-{draw_name(share, seed)}"
    tables = {"labels.csv": every, "folds.csv": folds}
    return link_patients(output, [train, test], set(every.patient_id), tables)


def draw_name(share: float, seed: int) -> str:
    """All labels are one draw, whatever the seed."""
    return "100" if share == 1 else f"{100 * share:g}-s{seed}"


def pretraining(work: Path, start: Start, seed: int, precision: str, *changes: str) -> Piece:
    """The pre-training of an encoder, with `changes` of the preset."""
    data = take_first_patients(work, start.unlabelled)
    output = work / "voco" / f"{start.name}-s{seed}"
    given = ("--data", data, "--output", output, "--seed", str(seed), "--precision", precision)
    first = ("--first-weights", start.first_weights)
    options = read_preset(VocoOptions, voco_preset(start.preset), *given, *first, *changes)
    return Piece(options, (data / "series.csv",))


def voco_preset(preset: str) -> str:
    return preset if preset.endswith(".yaml") else f"voco/{preset}"


def classification(
    work: Path,
    name: str,
    source: Path | str,
    share: float,
    seed: int,
    precision: str,
    preset: str,
    *changes: str,
) -> Piece:
    """Training on a share of the labels, and the prediction of the test patients.

    Fewer labels get more epochs, up to `MAX_REPEATS` times as many, and a warm-up as much longer.

    Args:
        name: of the folder, together with share and seed.
        source: an encoder, or `--first-weights`.
        preset: of train_cls.py, with `changes`.
    """
    data = draw_labelled(work, share, seed)
    inputs = [data / table for table in ("series.csv", "labels.csv", "folds.csv")]
    output = work / "cls" / f"{name}-l{100 * share:g}-s{seed}"
    tables = ("--data", data, "--labels", inputs[1], "--folds", inputs[2], "--output", output)
    options = read_preset(ClassifierOptions, preset, *tables, *changes)
    repeats = min(round(1 / share), MAX_REPEATS)
    arguments = [
        *("--epochs", str(options.epochs * repeats), "--warmup-epochs", str(options.warmup_epochs * repeats)),
        *("--seed", str(seed), "--fold", "0", "--precision", precision),
    ]
    if isinstance(source, Path):
        inputs.append(source)
        arguments += ["--encoder", str(source)]
    else:
        arguments += ["--first-weights", source]
    return Piece(read_preset(ClassifierOptions, preset, *tables, *changes, *arguments), tuple(inputs))


def read_predictions(piece: Piece) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Labels of the training and of the test patients of a finished classifier, and its predictions."""
    folds = pd.read_csv(piece.options.folds, dtype={"patient_id": str})
    labels = read_labels(piece.options.labels)
    is_scored = labels.patient_id.isin(folds.patient_id[folds.fold == 0])
    predicted = read_probabilities(piece.folder / "oof.csv")[["patient_id", *COLUMNS]]
    return labels[~is_scored], labels[is_scored].reset_index(drop=True), predicted


def link_patients(
    output: Path,
    sources: Sequence[PreparedDataset],
    patients: Collection[str],
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Make a prepared set of some patients of `sources` whose images are links.

    Args:
        output: the set, written by one rename; kept where nothing has changed.
        tables: further tables of the set, by file name.
    """
    series = pd.concat([source.series for source in sources], ignore_index=True)
    series = series[series.patient_id.isin(patients)].sort_values(["patient_id", "series_id"])
    contents = {"series.csv": series, **(tables or {})}
    if all(_holds(output / name, table) for name, table in contents.items()):
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(output) as partial:
        (partial / "images").mkdir()
        for source in sources:
            for patient in series.patient_id[series.patient_id.isin(source.series.patient_id)].unique():
                target = image_folder(source.folder, patient, "").resolve()
                link = os.path.relpath(target, output.resolve() / "images")
                (partial / "images" / patient).symlink_to(link, target_is_directory=True)
        for name, table in contents.items():
            write_table(table, partial / name)
        write_json(read_description(sources[0].folder), partial / "dataset.json")
    return output


def _holds(path: Path, table: pd.DataFrame) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == table.to_csv(
        index=False, lineterminator="\n"
    )
