"""The whole 5-fold run: checks first, then fold after fold, and the out-of-fold tables at the end."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from src.cls.fold import build_state, predict_series, train_fold
from src.cls.model import ClassifierSpec, save_classifier
from src.cls.options import ClassifierOptions
from src.core.checkpoint import differing_options
from src.core.config import plain_options, save_options
from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import format_table, say, warn
from src.core.runtime import Runtime
from src.core.targets import COLUMNS
from src.data.folds import read_folds
from src.data.labels import read_labels
from src.data.stack import PreparedDataset
from src.nn.encoder import GREY_MEAN, GREY_STD, EncoderFile, load_encoder, read_encoder_file
from src.score.metric import score
from src.score.prior import weight_aware_prior
from src.score.submission import combine_series

FREE_TO_CHANGE = ("fold", "resume", "workers", "output", "tta")
"""Options that an interrupted run may change without becoming another run."""


def train_folds(options: ClassifierOptions) -> None:
    """Train the folds asked for, write their models, tables and scores into `options.output`.

    Raises:
        UserError: data, labels, folds and encoder that do not belong together, or a run of other options.
    """
    prepared = PreparedDataset.open(options.data)
    labels = read_labels(options.labels).set_index("patient_id", drop=False)
    series = prepared.series.reset_index(drop=True)
    _require_labels(series, labels, options)
    folds = read_folds(options.folds, labels.patient_id).set_index("patient_id").fold
    series = series.assign(fold=series.patient_id.map(folds))
    chosen = _choose_folds(options, sorted(int(fold) for fold in folds.unique()))
    encoder = read_encoder_file(options.encoder) if options.encoder else None
    spec = describe_model(options, prepared, encoder)
    _claim_folder(options)
    _report_unseen(labels, series)
    runtime = Runtime.create(options.precision)
    for fold in chosen:
        folder = options.output / f"fold{fold}"
        if (folder / "oof_series.csv").exists():
            say(f"fold {fold} is finished: {folder}")
            continue
        _run_fold(runtime, options, spec, encoder, prepared, series, labels, folds, fold)
    if runtime.is_main:
        write_out_of_fold(options.output, labels, len(set(folds)))


def describe_model(
    options: ClassifierOptions, prepared: PreparedDataset, encoder: EncoderFile | None
) -> ClassifierSpec:
    """The classifier that these options, this data set and this encoder ask for.

    Raises:
        UserError: a crop larger than the slices, or an encoder of windows that the data set does not have.
    """
    if options.crop > prepared.size:
        raise UserError(
            f"--crop {options.crop} is larger than the {prepared.size} px slices of {options.data}"
        )
    windows, channels = prepared.windows, len(prepared.windows)
    mean, std = (GREY_MEAN,) * channels, (GREY_STD,) * channels
    if encoder is not None and encoder.windows == windows:
        mean, std = encoder.mean, encoder.std
    elif encoder is not None:
        warn(
            f"the encoder saw windows {' '.join(encoder.windows)}, the data set has {' '.join(windows)}: "
            "its first kernels are adapted"
        )
        mean, std = (encoder.mean[0],) * channels, (encoder.std[0],) * channels
    return ClassifierSpec(
        backbone=options.backbone if encoder is None else encoder.name,
        windows=windows,
        size=prepared.size,
        crop=options.crop,
        slices=options.slices,
        mean=mean,
        std=std,
        recurrent=options.recurrent,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
    )


def write_out_of_fold(output: Path, labels: pd.DataFrame, n_folds: int) -> None:
    """Join the finished folds' tables into `oof_series.csv` and `oof.csv`; print and save their scores."""
    tables = [
        pd.read_csv(path, dtype={"patient_id": str, "series_id": str})
        for path in sorted(output.glob("fold*/oof_series.csv"))
    ]
    if not tables:
        return
    by_series = pd.concat(tables, ignore_index=True)
    by_patient = combine_series(by_series)
    rows = []
    for fold, predicted in by_patient.groupby("fold"):
        rows.append(_score_row(f"fold {fold}", predicted, labels))
    rows.append(
        _score_row("all" if len(tables) == n_folds else f"{len(tables)} of {n_folds}", by_patient, labels)
    )
    write_table(by_series, output / "oof_series.csv")
    write_table(by_patient, output / "oof.csv")
    write_table(pd.DataFrame(rows), output / "scores.csv")
    say(format_table(rows))
    say(f"out-of-fold predictions: {output / 'oof.csv'}")


def _run_fold(
    runtime: Runtime,
    options: ClassifierOptions,
    spec: ClassifierSpec,
    encoder: EncoderFile | None,
    prepared: PreparedDataset,
    series: pd.DataFrame,
    labels: pd.DataFrame,
    folds: pd.Series,
    fold: int,
) -> None:
    folder = options.output / f"fold{fold}"
    training, held_out = series[series.fold != fold], series[series.fold == fold]
    if training.empty or held_out.empty:
        raise UserError(
            f"fold {fold}: {len(training)} training and {len(held_out)} held-out series; it needs both"
        )
    training_labels = labels[labels.patient_id.map(folds) != fold]
    spec = replace(spec, prior=weight_aware_prior(training_labels).to_dict())
    say(f"fold {fold}: {len(training)} series to train on, {len(held_out)} held out")
    state = build_state(spec, options, fold)
    if encoder is not None:
        say(f"encoder {options.encoder}: {load_encoder(state.model.encoder, options.encoder)}")
        state.ema.set(state.model)
        _warn_of_seen_patients(encoder, held_out, fold)
    train_fold(
        runtime, state, spec, options, prepared, training.reset_index(drop=True), training_labels, folder
    )
    if runtime.is_main:
        model = state.ema.module
        predicted = predict_series(runtime, model, spec, prepared, held_out, options)
        about = {
            "options": plain_options(options),
            "fold": fold,
            "training_patients": sorted(set(training.patient_id)),
        }
        save_classifier(folder / "model.safetensors", model, spec, **about)
        predicted.insert(2, "fold", fold)
        write_table(predicted, folder / "oof_series.csv")  # last: its presence marks the fold as finished
    runtime.wait()


def _score_row(name: str, predicted: pd.DataFrame, labels: pd.DataFrame) -> dict[str, object]:
    truth = labels[labels.patient_id.isin(predicted.patient_id)].reset_index(drop=True)
    scored = score(truth, predicted[["patient_id", *COLUMNS]])
    return {"fold": name, "patients": len(truth), "score": scored.score, **scored.losses}


def _require_labels(series: pd.DataFrame, labels: pd.DataFrame, options: ClassifierOptions) -> None:
    unknown = sorted(set(series.patient_id) - set(labels.patient_id))
    if unknown:
        raise UserError(
            f"{options.labels} has no row for {len(unknown)} patients of {options.data}, "
            f"the first is {unknown[0]}: give the labels of this data set"
        )


def _report_unseen(labels: pd.DataFrame, series: pd.DataFrame) -> None:
    absent = sorted(set(labels.patient_id) - set(series.patient_id))
    if absent:
        warn(f"{len(absent)} labelled patients have no prepared series and are left out, first {absent[0]}")


def _choose_folds(options: ClassifierOptions, available: list[int]) -> list[int]:
    if options.fold is None:
        return available
    unknown = [fold for fold in options.fold if fold not in available]
    if unknown:
        raise UserError(f"--fold {unknown[0]}: {options.folds} has folds {', '.join(map(str, available))}")
    return list(dict.fromkeys(options.fold))


def _claim_folder(options: ClassifierOptions) -> None:
    """Save the options as the run's own, or check that a run found there has the same."""
    path = options.output / "config.yaml"
    if path.exists():
        if options.resume == "never":
            raise UserError(
                f"{options.output} holds a run already: choose another --output, or --resume auto"
            )
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = differing_options(saved, plain_options(options), FREE_TO_CHANGE)
        if differing:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
            raise UserError(f"{options.output} holds a run with other {names}: choose another --output")
    save_options(options, path)


def _warn_of_seen_patients(encoder: EncoderFile, held_out: pd.DataFrame, fold: int) -> None:
    seen = set(encoder.patients) & set(held_out.patient_id)
    if seen:
        warn(
            f"fold {fold}: the encoder was pre-trained on {len(seen)} of the {held_out.patient_id.nunique()} "
            "held-out patients (images only, no labels: allowed, but the score may flatter)"
        )
