"""Inputs of a training run: series, labels, folds and encoder, checked for consistency."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from src.cls.fold_models import is_finished, read_about
from src.cls.options import ClassifierOptions
from src.cls.organs import OrganIndex
from src.cls.slice_targets import SliceTargets, read_marked_slices
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.log import say, warn
from src.data.doubtful import is_trained_on
from src.data.folds import read_folds
from src.data.labels import read_labels
from src.data.prepared import PreparedDataset
from src.nn.encoder import EncoderFile, create_encoder, read_encoder_file
from src.nn.encoder_input import EncoderInput, choose_input, find_input, warn_of_another_input
from src.nn.first_weights import KIND, load_first_weights, patients_seen_by
from src.nn.weights_file import require_weights


@dataclass(frozen=True)
class Fold:
    """A part of a run: networks trained on the patients of the other folds, or on all patients."""

    number: int
    """number of the fold; of networks of all patients, what is added to the seed"""
    is_of_all: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{'all' if self.is_of_all else 'fold'}{self.number}"

    def holds_out(self, fold_of: pd.Series) -> pd.Series:
        """Return which series or patients are held out, given their folds; none if it is of all patients."""
        return (fold_of == self.number) & (not self.is_of_all)


@dataclass(frozen=True)
class TrainingInputs:
    """All inputs that are read before the first step."""

    prepared: PreparedDataset
    series: pd.DataFrame
    """usable series: patient_id, series_id, slices, fold, ...; all are predicted"""
    trained_on: pd.Series
    """bool for each of `series`: whether the networks of other folds are trained on it"""
    labels: pd.DataFrame
    """one row per patient, indexed by patient_id"""
    folds: pd.Series
    """fold of every labelled patient, indexed by patient_id"""
    encoder: EncoderFile | None
    seen: frozenset[str]
    """patients whose images the first weights were trained on"""
    shown: EncoderInput
    """windows and neighbours of the networks' input"""
    organs: OrganIndex | None
    """None if masks are not needed"""
    slice_targets: SliceTargets | None
    """None without --slice-loss"""
    digest: str
    """digest of everything above that affects results, independent of paths"""

    @classmethod
    def read(cls, options: ClassifierOptions) -> "TrainingInputs":
        """Read and check the inputs that the options specify.

        Raises:
            UserError: a file is missing or damaged, or files are inconsistent.
        """
        prepared, series, labels, folds = read_tables(options.data, options.labels, options.folds)
        encoder = read_encoder_file(options.encoder) if options.encoder else None
        shown = _choose_input(options, prepared)
        digest = hashlib.sha256(repr((prepared.windows, prepared.size)).encode())
        for table in (series[["patient_id", "series_id", "slices", "fold"]], labels):
            digest.update(table.to_csv(index=False).encode())
        is_used = is_trained_on(series, options.doubtful, options.data)
        if not is_used.all():
            digest.update(series.loc[~is_used, ["patient_id", "series_id"]].to_csv(index=False).encode())
        if isinstance(options.source, Path):
            require_weights(options.source, KIND)
            digest.update(options.source.read_bytes())
        organs = _read_organs(prepared, options)
        digest.update(organs.digest.encode() if organs else b"")
        marked = read_marked_slices(options.image_labels, prepared) if options.image_labels else {}
        digest.update(options.image_labels.read_bytes() if options.image_labels else b"")
        slice_targets = SliceTargets(labels, organs, marked) if options.slice_loss else None
        return cls(
            *(prepared, series, is_used, labels, folds),
            *(encoder, frozenset(patients_seen_by(options.source))),
            *(shown, organs, slice_targets, digest.hexdigest()),
        )

    @property
    def fold_numbers(self) -> list[int]:
        return sorted(int(fold) for fold in self.folds.unique())

    def choose_folds(self, given: tuple[str, ...] | None) -> list[Fold]:
        """Return the folds to train: those of --fold, or all that are numbered.

        Raises:
            UserError: a fold does not exist.
        """
        numbered = {str(number): Fold(number) for number in self.fold_numbers}
        chosen = []
        for name in numbered if given is None else given:
            of_all = re.fullmatch(r"all(\d*)", name)
            if name not in numbered and not of_all:
                raise UserError(
                    f"--fold {name}: the folds are {', '.join(numbered)}, and all or all0, all1 ..."
                )
            chosen.append(Fold(int(of_all[1] or 0), is_of_all=True) if of_all else numbered[name])
        return list(dict.fromkeys(chosen))

    def warn_of_seen_patients(self, fold: Fold) -> None:
        """Warn of held-out patients that the encoder was trained on, with their number."""
        held_out = set(self.series.patient_id[fold.holds_out(self.series.fold)])
        seen = held_out & self.seen
        if seen:
            warn(
                f"{fold.name}: the encoder was pre-trained on {len(seen)} of the {len(held_out)} held-out "
                "patients (images only, no labels: allowed, but the score may flatter)"
            )

    def refuse_learnt_labels(self, source: str | Path, folds: Iterable[Fold]) -> None:
        """Refuse a fold model as first weights of folds whose held-out patients it was trained on.

        Raises:
            UserError: its file records a held-out patient of one of the `folds`.
        """
        try:
            learnt = set(read_about(source).get("training_patients", ()))
        except UserError:  # imagenet, package or none, or a checkpoint
            return
        for fold in folds:
            held_out = set(self.series.patient_id[fold.holds_out(self.series.fold)])
            if known := held_out & learnt:
                raise UserError(
                    f"{source} was trained on the labels of {len(known)} of the {len(held_out)} held-out "
                    f"patients of {fold.name}: take other --first-weights"
                )


def read_tables(
    data: Path, labels: Path, folds: Path
) -> tuple[PreparedDataset, pd.DataFrame, pd.DataFrame, pd.Series]:
    """Read a prepared data set, its usable series with their fold, labels and folds: see `TrainingInputs`.

    Raises:
        UserError: a file is missing or damaged, or a patient is missing in labels or folds.
    """
    prepared = PreparedDataset.open(data)
    label_table = read_labels(labels).set_index("patient_id", drop=False)
    unknown = sorted(set(prepared.series.patient_id) - set(label_table.patient_id))
    if unknown:
        raise UserError(
            f"{labels} has no row for {len(unknown)} patients of {data}, the first is {unknown[0]}: give the "
            "labels of this data set"
        )
    fold_of = read_folds(folds, label_table.patient_id).set_index("patient_id").fold
    series = prepared.series.assign(fold=prepared.series.patient_id.map(fold_of))
    return prepared, series, label_table, fold_of


def check_first_weights(
    options: ClassifierOptions, backbone: str, view: StackView, folds: Iterable[Fold]
) -> None:
    """Load the first weights once if one of the `folds` will need them, before folders are made or emptied.

    Raises:
        UserError: they cannot be loaded, or `--resume never` would delete their file.
    """
    folders = [options.output / fold.name for fold in folds]
    source = options.source
    if options.resume != "never":
        if all(any(each.rglob("last.pt")) or is_finished(each) for each in folders):
            return
    elif isinstance(source, Path) and {each.resolve() for each in folders} & set(source.resolve().parents):
        raise UserError(f"{source} is in a fold that --resume never would delete: copy it elsewhere")
    encoder = create_encoder(backbone, view.channels, view.crop)
    load_first_weights(encoder, source, view.windows, view.neighbours, view.mask_channels)


def _choose_input(options: ClassifierOptions, prepared: PreparedDataset) -> EncoderInput:
    """Choose windows and neighbours; warn if the encoder learnt from others."""
    source = options.source
    given = (options.windows, options.neighbours, options.neighbour_mm)
    shown = choose_input(find_input(source), prepared.windows, *given)
    prepared.channels(shown.windows)  # refuses windows that are not prepared
    warn_of_another_input(source, shown)
    return shown


def _read_organs(prepared: PreparedDataset, options: ClassifierOptions) -> OrganIndex | None:
    """Read required masks, or masks that slice targets use if they exist."""
    if options.needs_organs:
        return OrganIndex.read(prepared, options.masks_from)
    if options.slice_loss:
        try:
            return OrganIndex.read(prepared, options.masks_from)
        except UserError:
            say("there are no masks: only marked slices have slice targets")
    return None
