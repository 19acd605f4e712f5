"""Features of the folds, kept in the run's folder: described once, and read again only where they fit.

    features/fold0/features.safetensors     features, padding and base of `SliceFeatures`, and what made them
    features/fold0/series.csv               patient_id, series_id, fold of their rows

The folder of a fold appears by one rename.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from src.cls.organs import OrganIndex
from src.cls.second_inputs import FeatureSource, name_inputs
from src.cls.slice_features import FirstLevelModel, SliceFeatures, describe_series
from src.core.errors import UserError
from src.core.files import discard, whole_folder, write_table
from src.core.log import say
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.prepared import PreparedDataset
from src.nn.weights_file import read_weights, save_weights

FEATURES = "features"
"""In a run's folder."""

TENSORS, TABLE = "features.safetensors", "series.csv"

VERSION = 1
"""Of the files, and of what features tell; a reader refuses another."""

_IDS = {"patient_id": str, "series_id": str}


class FeatureStore:
    """The features in a run's folder."""

    def __init__(self, output: Path) -> None:
        self.folder = output / FEATURES

    def folder_of(self, fold: int) -> Path:
        return self.folder / f"fold{fold}"

    def holds(self, fold: int) -> bool:
        """Whether there are features of a fold, be it such as do not fit."""
        return self.folder_of(fold).exists()

    def keep(self, source: FeatureSource, described: SliceFeatures) -> None:
        """Write the features of a fold with what they were made of, by one rename."""
        patients = frozenset().union(*(network.patients for network in source.networks))
        made = {"version": VERSION, "identity": source.identity, "training_patients": sorted(patients)}
        tensors = {"features": described.features, "padding": described.padding, "base": described.base}
        with whole_folder(self.folder_of(source.fold)) as partial:
            save_weights(partial / TENSORS, tensors, made=made)
            write_table(described.series, partial / TABLE)

    def read(self, source: FeatureSource) -> SliceFeatures:
        """The features of a fold.

        Raises:
            UserError: they are damaged, of other series than the fold has now, by networks that were trained
                on one of its patients, or made of something else than the source.
        """
        try:
            return _read_fitting(self.folder_of(source.fold), source)
        except UserError as error:
            raise UserError(f"{error}: start anew with --resume never, or choose another --output") from None

    def drop_misfits(self, sources: Iterable[FeatureSource]) -> None:
        """Delete the features that `read` would refuse."""
        for source in sources:
            if self.holds(source.fold):
                try:
                    _read_fitting(self.folder_of(source.fold), source)
                except UserError as error:
                    say(f"{error}: it is made again")
                    discard(self.folder_of(source.fold))


def out_of_fold_features(
    store: FeatureStore,
    sources: Sequence[FeatureSource],
    prepared: PreparedDataset,
    organs: OrganIndex | None,
    runtime: Runtime,
    workers: int = 1,
) -> SliceFeatures:
    """Features of every series, by the networks of its own fold, which never saw its patient.

    Those that the store has are taken from there; the others are described, and kept there fold by fold.

    Args:
        sources: of every fold; the series of the result stand in their order.

    Raises:
        UserError: a network that was trained on a patient of its fold, features in the store that do not fit,
            or features that are no numbers.
    """
    parts = {source.fold: store.read(source) for source in sources if store.holds(source.fold)}
    for fold, part in parts.items():
        say(f"fold {fold}: features of {len(part.series)} series are read from {store.folder_of(fold)}")
    for source in sources:
        if source.fold not in parts:
            models = [FirstLevelModel.load(network.path) for network in source.networks]
            described = describe_series(models, prepared, organs, source.series, runtime, workers)
            for network in source.networks:
                network.refuse_changed(network.path)
            _refuse_not_finite(described)
            store.keep(source, described)
            parts[source.fold] = store.read(source)  # as a run that continues here does
            say(f"fold {source.fold}: {len(source.series)} series by {len(source.networks)} networks")
    ordered = [parts[source.fold] for source in sources]
    if len({part.features.shape[1:] for part in ordered}) > 1:
        raise UserError("the folds of the runs give other features: they are not of one run each")
    return SliceFeatures(
        pd.concat([part.series for part in ordered], ignore_index=True),
        torch.cat([part.features for part in ordered]),
        torch.cat([part.padding for part in ordered]),
        torch.cat([part.base for part in ordered]),
    )


def _refuse_not_finite(described: SliceFeatures) -> None:
    is_finite = described.features.isfinite().all(dim=(1, 2)) & described.base.isfinite().all(dim=1)
    if not is_finite.all():
        row = described.series.iloc[int((~is_finite).nonzero()[0])]
        raise UserError(
            f"the features of {row.patient_id}/{row.series_id} are not finite: give --precision fp32"
        )


def _read_fitting(folder: Path, source: FeatureSource) -> SliceFeatures:
    """The features of a folder; the error of such as do not fit says why, not what to do."""
    table, tensors, made = _load(folder)
    _refuse_other_series(folder, table, source)
    own = set(made["training_patients"]) & set(source.series["patient_id"])
    if own:
        raise UserError(
            f"{folder} was made by networks that were trained on patient {min(own)} of fold {source.fold}"
        )
    changed = [name for name in source.identity if made["identity"].get(name) != source.identity[name]]
    if changed:
        raise UserError(f"{folder} was made with other {name_inputs(changed)}")
    count, length = len(source.series), source.networks[0].spec.view.slices
    shapes = [tuple(tensors[name].shape) for name in ("features", "padding", "base")]
    if [shapes[0][:2], *shapes[1:]] != [(count, length), (count, length), (count, len(COLUMNS))]:
        raise UserError(f"{folder} is damaged (tensors of shapes {shapes} for {count} series)")
    return SliceFeatures(source.series, tensors["features"], tensors["padding"], tensors["base"])


def _load(folder: Path) -> tuple[pd.DataFrame, dict[str, Tensor], dict[str, Any]]:
    """The table, the tensors, and what is told of how they were made."""
    try:
        table = pd.read_csv(folder / TABLE, dtype=_IDS, keep_default_na=False)[[*_IDS, "fold"]]
        made, tensors = read_weights(
            folder / TENSORS, "features of a fold", lambda metadata: metadata["made"]
        )
        version, patients, _ = made["version"], set(made["training_patients"]), made["identity"].items()
        _ = tensors["features"], tensors["padding"], tensors["base"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} cannot be read as features of a fold ({reason})") from None
    if version != VERSION:
        raise UserError(f"{folder} was made by another version of the kit ({version}, not {VERSION})")
    if not patients:
        raise UserError(f"{folder} does not say whom its networks were trained on")
    return table, tensors, made


def _refuse_other_series(folder: Path, table: pd.DataFrame, source: FeatureSource) -> None:
    """Rows are known by their place, so the table must be that of the fold, row by row."""
    kept, wanted = (
        list(rows.itertuples(index=False, name=None)) for rows in (table, source.series[list(table)])
    )
    if kept == wanted:
        return
    patient, series, _ = min(set(kept) ^ set(wanted) or set(kept), key=str)
    raise UserError(
        f"{folder} is of other series than --folds and --data give fold {source.fold}, as {patient}/{series}"
    )
