"""The whole 5-fold run: checks first, then fold after fold, and the out-of-fold tables at the end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from src.cls.fold import predict_series, train_fold
from src.cls.inputs import TrainingInputs
from src.cls.model import ClassifierSpec, save_classifier
from src.cls.options import ClassifierOptions
from src.cls.out_of_fold import FOLD_TABLE, write_out_of_fold
from src.cls.state import build_state
from src.core.checkpoint import differing_options
from src.core.config import plain_options, save_options
from src.core.errors import UserError
from src.core.files import write_json, write_table
from src.core.log import say, warn
from src.core.runtime import Runtime
from src.nn.encoder import GREY_MEAN, GREY_STD, check_input_size, create_encoder, load_encoder
from src.score.prior import weight_aware_prior

FREE_TO_CHANGE = ("data", "labels", "folds", "encoder", "output", "fold", "resume", "workers")
"""Options that may change within a run: none alters a result (inputs are known by their content)."""


def train_folds(options: ClassifierOptions) -> None:
    """Train the folds asked for; write their models, tables and scores into `options.output`.

    Raises:
        UserError: data, labels, folds and encoder that do not belong together, or a run of other options.
    """
    inputs = TrainingInputs.read(options)
    chosen = inputs.choose_folds(options.fold)
    spec = describe_model(options, inputs)
    check_input_size(create_encoder(spec.backbone, len(spec.windows)), len(spec.windows), spec.crop)
    runtime = Runtime.create(options.precision, one_process=True)
    _claim_folder(options, inputs, chosen)
    for fold in chosen:
        folder = options.output / f"fold{fold}"
        if (folder / FOLD_TABLE).exists():
            say(f"fold {fold} is finished: {folder}")
        else:
            _run_fold(runtime, options, spec, inputs, fold, folder)
    write_out_of_fold(options.output, inputs)


def describe_model(options: ClassifierOptions, inputs: TrainingInputs) -> ClassifierSpec:
    """The classifier that these options, this data set and this encoder ask for.

    Raises:
        UserError: a crop larger than the slices.
    """
    prepared, encoder = inputs.prepared, inputs.encoder
    if options.crop > prepared.size:
        raise UserError(
            f"--crop {options.crop} is larger than the {prepared.size} px slices of {options.data}"
        )
    channels = len(prepared.windows)
    mean, std = (GREY_MEAN,) * channels, (GREY_STD,) * channels
    if encoder is not None and encoder.windows == prepared.windows:
        mean, std = encoder.mean, encoder.std
    elif encoder is not None:
        warn(
            f"the encoder saw the windows {' '.join(encoder.windows)}, the data set has "
            f"{' '.join(prepared.windows)}: its first layer meets other greys"
        )
    return ClassifierSpec(
        backbone=options.backbone if encoder is None else encoder.name,
        windows=prepared.windows,
        size=prepared.size,
        crop=options.crop,
        slices=options.slices,
        mean=mean,
        std=std,
        recurrent=options.recurrent,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
        tta=options.tta,
    )


def _run_fold(
    runtime: Runtime,
    options: ClassifierOptions,
    spec: ClassifierSpec,
    inputs: TrainingInputs,
    fold: int,
    folder: Path,
) -> None:
    is_held_out = inputs.series.fold == fold
    training = inputs.series[~is_held_out].reset_index(drop=True)
    held_out = inputs.series[is_held_out].reset_index(drop=True)
    if training.empty or held_out.empty:
        raise UserError(
            f"fold {fold}: {len(training)} training and {len(held_out)} held-out series; it needs both"
        )
    labels = inputs.labels[inputs.labels.patient_id.map(inputs.folds) != fold]
    spec = replace(spec, prior=weight_aware_prior(labels).to_dict())
    say(f"fold {fold}: {len(training)} series to train on, {len(held_out)} held out")
    state = build_state(spec, options, fold)
    if inputs.encoder is not None:
        say(f"encoder {options.encoder}: {load_encoder(state.model.encoder, options.encoder)}")
        state.ema.set(state.model)
        inputs.warn_of_seen_patients(fold)
    train_fold(runtime, state, spec, options, inputs.prepared, training, labels, folder)
    model = state.ema.module
    predicted = predict_series(runtime, model, spec, inputs.prepared, held_out, options)
    predicted.insert(2, "fold", fold)
    patients = sorted(set(training.patient_id))
    save_classifier(folder / "model.safetensors", model, spec, fold=fold, training_patients=patients)
    write_table(predicted, folder / FOLD_TABLE)


def _claim_folder(options: ClassifierOptions, inputs: TrainingInputs, chosen: list[int]) -> None:
    """Make `options.output` the folder of this run, unless trained folds of another are in it.

    Raises:
        UserError: a fold there was trained with other options or on other data.
    """
    record = options.output / "run.json"
    identity = {"options": plain_options(options), "inputs": inputs.digest}
    if options.resume == "never":
        for fold in chosen:
            shutil.rmtree(options.output / f"fold{fold}", ignore_errors=True)
    if record.exists() and any(options.output.glob("fold*/last.pt")):
        saved = json.loads(record.read_text(encoding="utf-8"))
        differing = differing_options(saved["options"], identity["options"], FREE_TO_CHANGE)
        if saved["inputs"] != inputs.digest:
            differing.append("data (series, labels, folds or encoder)")
        if differing:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
            raise UserError(f"{options.output} holds a run with other {names}: choose another --output")
    write_json(identity, record)
    save_options(options, options.output / "config.yaml")
