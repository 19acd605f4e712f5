"""Prediction of held-out series, at the end of a fold and, with --validate-every, during its training."""

import numpy as np
import pandas as pd
import torch
from torch import nn

from src.cls.dataset import StackDataset
from src.cls.inputs import TrainingInputs
from src.cls.model import ClassifierSpec, predict_stack
from src.cls.options import ClassifierOptions
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.packed import PackedSlices
from src.nn.loading import StackLoader
from src.score.metric import score
from src.score.submission import combine_series


def predict_held_out(
    runtime: Runtime,
    model: nn.Module,
    spec: ClassifierSpec,
    inputs: TrainingInputs,
    series: pd.DataFrame,
    options: ClassifierOptions,
) -> pd.DataFrame:
    """Return `patient_id, series_id` and probabilities of the network's columns, one row per series.

    Under torchrun each process predicts a part of the series, and all processes get all rows.

    Args:
        spec: the network's, with the flips and offsets to average.
    """
    model.eval()
    share = series.iloc[runtime.rank :: runtime.world]
    total = 0.0
    packed = open_cache(options, spec, inputs)
    for offset in spec.offsets:
        dataset = StackDataset(inputs.prepared, share, spec.view, inputs.organs, packed=packed, offset=offset)
        batches = []
        for batch in StackLoader(dataset, options.workers, batch_size=options.batch):
            images, padding = (part.to(runtime.device) for part in (batch.images, batch.padding))
            with runtime.autocast():
                batches.append(predict_stack(model, spec, images, padding, spec.flips).cpu())
        total = total + torch.cat(batches).double().numpy() if batches else total
    rows = []
    if len(share):
        table = share[["patient_id", "series_id"]].reset_index(drop=True)
        values = pd.DataFrame(total / len(spec.offsets), columns=list(spec.columns))
        rows = table.join(values).to_dict("records")
    predicted = pd.DataFrame(runtime.gather_rows(rows))
    return series[["patient_id", "series_id"]].merge(predicted, validate="1:1")


def validation_losses(
    predicted: pd.DataFrame, spec: ClassifierSpec, labels: pd.DataFrame
) -> dict[str, float]:
    """Return the competition's losses of the network's targets over patients, and their mean.

    Args:
        predicted: result of `predict_held_out`.
        labels: labels of every patient.

    Returns:
        `val_<target>` of each target, `val_any_injury` if the network predicts all, and `val_score`.
    """
    missing = [column for column in COLUMNS if column not in spec.columns]
    by_patient = combine_series(predicted.assign(**dict.fromkeys(missing, np.nan)))
    prior = [spec.prior[column] for column in missing]  # of targets whose losses are not returned
    by_patient = by_patient.assign(**dict(zip(missing, prior, strict=True)))
    truth = labels[labels.patient_id.isin(by_patient.patient_id)].reset_index(drop=True)
    losses = score(truth, by_patient).losses
    if missing:
        losses = {target: losses[target] for target in spec.targets}
    mean = sum(losses.values()) / len(losses)
    return {f"val_{name}": float(value) for name, value in {**losses, "score": mean}.items()}


def open_cache(
    options: ClassifierOptions, spec: ClassifierSpec, inputs: TrainingInputs
) -> PackedSlices | None:
    """Open the cache of raw slices, if the options specify one."""
    if options.cache is None:
        return None
    return PackedSlices(inputs.prepared, spec.view.windows, options.cache)
