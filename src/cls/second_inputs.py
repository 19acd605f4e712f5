"""What a second level is made of: networks, series, labels and folds, checked to belong together."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.cls.model import ClassifierSpec
from src.cls.organs import OrganIndex
from src.cls.run_folder import find_networks
from src.cls.second_model import FIRST
from src.cls.second_options import SecondLevelOptions
from src.cls.slice_features import FirstLevelModel, read_patients, refuse_own_patients
from src.cls.stacks import check_view
from src.core.errors import UserError
from src.core.targets import COLUMNS
from src.data.folds import read_folds
from src.data.labels import read_labels
from src.data.prepared import PreparedDataset, read_description


@dataclass(frozen=True)
class FirstNetwork:
    """A network of a fold of a first-level run, without its weights."""

    path: Path
    place: Path
    """of its copy, in the second level's folder of the fold"""
    digest: str
    """SHA-256 of the file"""
    patients: frozenset[str]
    """whom it was trained on"""
    spec: ClassifierSpec

    def refuse_changed(self, path: Path) -> None:
        """Make sure that a file, its own or a copy, still is what was read at the start.

        Raises:
            UserError: it is another.
        """
        if _file_digest(path) != self.digest:
            raise UserError(
                f"{self.path} was written anew while the second level was at work: start it again"
            )

    def copy_into(self, folder: Path) -> None:
        """Copy it to its place in a fold's folder.

        Raises:
            UserError: it is not what was read at the start.
        """
        target = folder / self.place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.path, target)
        self.refuse_changed(target)


@dataclass(frozen=True)
class FeatureSource:
    """What the features of a fold are made of."""

    fold: int
    series: pd.DataFrame
    """patient_id, series_id, fold; a row a series of this fold"""
    networks: tuple[FirstNetwork, ...]
    """of this fold of every run"""
    identity: dict[str, Any]
    """what features follow from, by content: `runs`, `data`, `masks`, `precision`"""


@dataclass(frozen=True)
class SecondInputs:
    """Everything that is read before the first series is described."""

    prepared: PreparedDataset
    labels: pd.DataFrame
    """a row a patient, indexed by patient_id"""
    folds: pd.Series
    """the fold of every labelled patient, indexed by patient_id"""
    organs: OrganIndex | None
    """None where no network needs masks"""
    sources: dict[int, FeatureSource]
    """by fold, in rising order"""
    identity: dict[str, Any]
    """what a result follows from besides the options, by content: that of the features, `labels`, `folds`"""

    @classmethod
    def read(cls, options: SecondLevelOptions, precision: str) -> "SecondInputs":
        """Read and check the inputs that the options name.

        Args:
            precision: that the networks are to work in: fp32, bf16 or fp16.

        Raises:
            UserError: runs, data, labels and folds that do not belong together, or a network that was trained
                on a patient of the fold that it is to describe, or does not say on whom.
        """
        prepared = PreparedDataset.open(options.data)
        labels = read_labels(options.labels).set_index("patient_id", drop=False)
        folds = read_folds(options.folds, labels.patient_id).set_index("patient_id").fold
        series = prepared.series.assign(fold=prepared.series.patient_id.map(folds))
        if series.fold.isna().any():
            raise UserError(f"{options.labels} lacks patients of {options.data}: give its own labels")
        if series.fold.nunique() < 2:
            raise UserError(
                f"the series of {options.data} are of one fold: a second level learns from others"
            )
        parts = {int(fold): rows.reset_index(drop=True) for fold, rows in series.groupby("fold")}
        networks = {
            fold: _read_networks(options.runs, fold, rows["patient_id"]) for fold, rows in parts.items()
        }
        _check_networks(prepared, networks)
        organs = _find_organs(prepared, [network for own in networks.values() for network in own])
        shared = {"masks": organs.digest if organs else "none", "precision": precision}
        sources = {
            fold: FeatureSource(
                fold,
                rows[["patient_id", "series_id", "fold"]],
                networks[fold],
                {
                    "runs": [network.digest for network in networks[fold]],
                    "data": _data_digest(prepared, rows.drop(columns="fold")),
                    **shared,
                },
            )
            for fold, rows in parts.items()
        }
        identity = {
            "runs": [source.identity["runs"] for source in sources.values()],
            "data": _data_digest(prepared, prepared.series),
            **shared,
            "labels": _table_digest(labels.sort_index()),
            "folds": _table_digest(folds.sort_index().reset_index()),
        }
        return cls(prepared, labels, folds, organs, sources, identity)


def find_models(run: Path, fold: int) -> list[Path]:
    """The networks of a fold of a run: one, or one for each target.

    Raises:
        UserError: the fold is not finished.
    """
    paths = find_networks(run / f"fold{fold}")
    if not paths:
        raise UserError(f"{run} has no finished fold {fold}: train_cls.py trains it")
    return paths


def name_inputs(names: Iterable[str]) -> str:
    """Options, and what `identity` tells apart, as a message names them."""
    return ", ".join(name if name == "masks" else f"--{name.replace('_', '-')}" for name in names)


def _read_networks(runs: Sequence[Path], fold: int, patient_ids: pd.Series) -> tuple[FirstNetwork, ...]:
    """The networks of a fold of all runs, none of which was trained on the patients."""
    networks = []
    for number, run in enumerate(runs):
        for path in find_models(run, fold):
            refuse_own_patients(path, patient_ids)
            place = Path(FIRST) / str(number) / path.relative_to(run / f"fold{fold}")
            spec = FirstLevelModel.load(path).spec
            networks.append(FirstNetwork(path, place, _file_digest(path), read_patients(path), spec))
    return tuple(networks)


def _check_networks(prepared: PreparedDataset, networks: dict[int, tuple[FirstNetwork, ...]]) -> None:
    """Find what would end the work after hours of describing."""
    specs = {fold: [network.spec for network in own] for fold, own in networks.items()}
    for spec in (spec for own in specs.values() for spec in own):
        check_view(prepared, spec.view)
    for own in specs.values():
        lengths = sorted({spec.view.slices for spec in own})
        if len(lengths) > 1:
            raise UserError(f"the runs have stacks of {lengths} slices: a second level needs one length")
        untold = [name for name in COLUMNS if not any(name in spec.columns for spec in own)]
        if untold:
            raise UserError(f"no network of the runs tells {untold[0]}: a second level needs all targets")
    kinds = {tuple((spec.view, spec.columns, spec.predicts_slices) for spec in own) for own in specs.values()}
    if len(kinds) > 1:
        raise UserError("the folds of the runs give other features: they are not of one run each")


def _find_organs(prepared: PreparedDataset, networks: Sequence[FirstNetwork]) -> OrganIndex | None:
    """The masks that the networks were trained with, None where none needs any."""
    wanted = [network.spec.view for network in networks if network.spec.view.needs_masks]
    if not wanted:
        return None
    organs = OrganIndex.find(prepared, wanted[0].masks_from)
    organs.warn_of_unknown(prepared.series, wanted[0])
    return organs


def _data_digest(prepared: PreparedDataset, series: pd.DataFrame) -> str:
    """Of some series: how their data set was prepared, and all that series.csv tells of them."""
    description = read_description(prepared.folder)
    digest = hashlib.sha256(json.dumps([description["windows"], prepared.size]).encode())
    digest.update(json.dumps(prepared.slice_policy).encode())
    digest.update(_table_digest(series).encode())
    return digest.hexdigest()


def _table_digest(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
