"""The data and trainings of the transfer study: sets that share their images, encoders and classifiers."""

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
from src.data.folds import make_folds
from src.data.labels import read_labels
from src.data.prepared import PreparedDataset, image_folder, read_description
from src.voco.options import VocoOptions

PHANTOMS = {
    "raw": "--patients 200 --test-patients 300 --seed 1",
    "raw_unlabelled": "--patients 400 --test-patients 0 --seed 2",
    "raw_probe": "--patients 40 --test-patients 0 --segmentation-rate 1 --seed 3",
}
"""What the study makes where it is not given raw data; the probe set is for the probes of encoders."""


MOST_REPEATS = 2
"""More overfit: with five times the epochs a tenth of the labels scored far worse than the prior."""


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
class StudyFolders:
    """Where everything of a study lies; `labelled`, `unlabelled` and `probe` (not always there) are raw."""

    work: Path
    labelled: Path
    unlabelled: Path
    probe: Path | None

    @classmethod
    def find(cls, work: Path, raw_folders: Sequence[Path]) -> "StudyFolders":
        """Of the given raw data (labelled, unlabelled), else of the study's own phantoms."""
        own = [work / name for name in PHANTOMS]
        return cls(work, *raw_folders, None) if raw_folders else cls(work, *own)

    def prepared(self, name: str) -> Path:
        """A prepared set: train, test, unlabelled or probe."""
        return self.work / "prepared" / name

    def open_prepared(self, name: str) -> PreparedDataset:
        """Raises UserError where the stage `data` has not been run."""
        if not (self.prepared(name) / "series.csv").is_file():
            raise UserError(f"no prepared set {self.prepared(name)}: run --stage data first")
        return PreparedDataset.open(self.prepared(name))

    def subset(self, unlabelled: int) -> Path:
        """The first so many unlabelled patients."""
        return self.work / "sets" / f"unlabelled-{unlabelled}"

    def labels(self, name: str) -> Path:
        """A draw of training patients beside all patients that are scored."""
        return self.work / "sets" / f"labels-{name}"

    def read_training_labels(self) -> pd.DataFrame:
        return read_labels(self.labelled / "train.csv")

    def read_test_labels(self) -> pd.DataFrame:
        return read_labels(self.labelled / "test_labels.csv")


def make_data(folders: StudyFolders, size: int) -> None:
    """Make the phantoms that are the study's own, and prepare all sets at `size` px; keep what is there.

    Raises:
        UserError: raw data that is not there or cannot be prepared, or a prepared set of another size.
    """
    for name, options in PHANTOMS.items():
        if folders.work / name in (folders.labelled, folders.unlabelled, folders.probe):
            make_phantom(folders.work / name, options)
    prepare(folders.labelled, folders.prepared("train"), size, "--split", "train")
    prepare(folders.labelled, folders.prepared("test"), size, "--split", "test")
    prepare(folders.unlabelled, folders.prepared("unlabelled"), size)
    if folders.probe:
        prepare(folders.probe, folders.prepared("probe"), size)


def take_first_patients(folders: StudyFolders, patients: int) -> Path:
    """A prepared set of the first `patients` unlabelled patients; a smaller one lies within a larger one.

    Raises:
        UserError: there are not so many.
    """
    source = folders.open_prepared("unlabelled")
    known = source.series.patient_id.drop_duplicates()
    if patients > len(known):
        raise UserError(f"--unlabelled {patients}: {source.folder} has {len(known)} patients")
    return link_patients(folders.subset(patients), [source], set(known.head(patients)))


def draw_labelled(folders: StudyFolders, share: float, seed: int) -> Path:
    """A prepared set of a stratified share of the training patients and of all patients that are scored.

    Its folds.csv puts those that are scored into fold 0 and the drawn ones into fold 1, so that
    `train_cls.py --fold 0` trains on the draw and predicts the rest. A draw depends on the share and the seed
    alone: all methods see the same patients.
    """
    train, test = folders.open_prepared("train"), folders.open_prepared("test")
    labels, test_labels = folders.read_training_labels(), folders.read_test_labels()
    if share < 1:
        series_counts = train.series.groupby("patient_id").size().reindex(labels.patient_id, fill_value=0)
        draws = make_folds(labels, series_counts, n_folds=round(1 / share), seed=seed)
        labels = labels[labels.patient_id.isin(draws.patient_id[draws.fold == 0])]
    every = pd.concat([labels, test_labels], ignore_index=True)
    folds = pd.DataFrame({"patient_id": every.patient_id, "fold": [1] * len(labels) + [0] * len(test_labels)})
    output = folders.labels(draw_name(share, seed))
    return link_patients(
        output, [train, test], set(every.patient_id), {"labels.csv": every, "folds.csv": folds}
    )


def draw_name(share: float, seed: int) -> str:
    """All labels are one draw, whatever the seed."""
    return "100" if share == 1 else f"{100 * share:g}-s{seed}"


def pretraining(folders: StudyFolders, start: Start, preset: str, seed: int, precision: str) -> Piece:
    """The pre-training that `start` asks for."""
    data = take_first_patients(folders, start.unlabelled)
    output = folders.work / "voco" / f"{start.name}-s{seed}"
    options = read_voco(preset, data, output, "--seed", str(seed), "--precision", precision)
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


def read_voco(preset: str, data: Path, output: Path, *arguments: str) -> VocoOptions:
    """A preset of train_voco.py, by its name in configs/voco or by its path."""
    name = preset if preset.endswith(".yaml") else f"voco/{preset}"
    return read_preset(VocoOptions, name, "--data", data, "--output", output, *arguments)


def read_classifier(config: str, data: Path, output: Path, *arguments: str) -> ClassifierOptions:
    """A preset of train_cls.py with the tables of a drawn set."""
    tables = ("--labels", data / "labels.csv", "--folds", data / "folds.csv")
    return read_preset(ClassifierOptions, config, "--data", data, "--output", output, *tables, *arguments)


def link_patients(
    output: Path,
    sources: Sequence[PreparedDataset],
    patients: Collection[str],
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Make a prepared set of some patients of `sources`; its images are links, so none is copied.

    Args:
        output: the set; it appears whole, and stays as it is where nothing has changed.
        tables: further tables of the set, by file name.

    Raises:
        UserError: sources of different sizes or windows.
    """
    first = sources[0]
    for other in sources[1:]:
        if (other.size, other.windows) != (first.size, first.windows):
            raise UserError(f"{other.folder} and {first.folder} differ in size or windows: prepare one again")
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
        write_json(read_description(first.folder), partial / "dataset.json")
    return output


def _holds(path: Path, table: pd.DataFrame) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == table.to_csv(
        index=False, lineterminator="\n"
    )
