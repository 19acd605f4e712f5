"""A 5-fold run: input checks, training fold by fold, and the out-of-fold tables."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.cls.fold import train_network
from src.cls.fold_models import FOLD_TABLE, MODEL, is_finished
from src.cls.inputs import Fold, TrainingInputs, check_first_weights
from src.cls.model import ClassifierSpec, TraumaClassifier, save_classifier
from src.cls.options import ClassifierOptions
from src.cls.order import require_shared_batch
from src.cls.out_of_fold import refuse_shared_patients, write_out_of_fold
from src.cls.run_claims import claim_folds
from src.cls.validation import predict_held_out
from src.cls.views import EACH_KIDNEY, TARGET_ORGANS, StackView
from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import is_main_process, say
from src.core.run_folder import (
    find_checkpoint,
    only_writer,
)
from src.core.runtime import Runtime, torch_seed
from src.core.targets import CLASS_WEIGHTS, COLUMNS
from src.data.doubtful import is_doubtful, say_doubtful
from src.data.selection import SliceSelection
from src.nn.encoder import check_input_size, create_encoder, require_true_bf16
from src.nn.first_weights import first_greys, load_first_weights
from src.nn.micro_batch import require_enough_statistics
from src.nn.organ_decoder import OrganDecoder
from src.score.prior import weight_aware_prior


@dataclass(frozen=True)
class FoldNetwork:
    """One network of a fold: the only one, or the one of a target."""

    name: str
    """folder name inside the fold's folder; empty if it is the only network"""
    spec: ClassifierSpec


def train_folds(options: ClassifierOptions) -> None:
    """Train the chosen folds; write their models, tables and scores into `options.output`.

    Under torchrun every process calls this function; only rank 0 writes. Other commands may train other folds
    of the same run at the same time, such as one per GPU.

    Raises:
        UserError: data, labels, folds and encoder are inconsistent, the run has other options, or another
            command trains one of the folds.
    """
    inputs = TrainingInputs.read(options)
    say_doubtful(is_doubtful(inputs.series).sum(), options.doubtful)
    chosen = inputs.choose_folds(options.fold)
    if options.keep == "best" and any(fold.is_of_all for fold in chosen):
        raise UserError("--keep best needs held-out patients, which networks of --fold all do not have")
    networks = describe_networks(options, inputs)
    for network in networks:
        view = network.spec.view
        encoder = create_encoder(network.spec.backbone, view.channels, view.crop)
        check_input_size(encoder, view.channels, view.crop)
        require_enough_statistics(encoder, network.spec.backbone, options.micro_batch)
        if options.organ_loss:
            OrganDecoder(encoder, view.channels, view.crop)  # refuses unsuitable backbones
    inputs.refuse_learnt_labels(options.source, chosen)
    check_first_weights(options, networks[0].spec.backbone, networks[0].spec.view, chosen)
    with (
        Runtime.create(options.precision) as runtime,
        runtime.lost_peer_in_one_line(),
        ExitStack() as claims,
    ):
        require_shared_batch(options, runtime.world)
        if runtime.is_bf16_on_cpu:
            for spec in (network.spec for network in networks):
                encoder = create_encoder(spec.backbone, spec.view.channels, spec.view.crop)
                require_true_bf16(encoder, spec.view.channels, spec.view.crop)
        if is_main_process():
            claim_folds(options, inputs, chosen, claims)
        runtime.wait_for_all()
        finished = [fold for fold in chosen if is_finished(options.output / fold.name)]
        runtime.wait_for_all()  # before any process finishes a fold
        for view in {network.spec.view for network in networks}:
            if inputs.organs is not None:
                inputs.organs.warn_of_missing(inputs.series, view)
        for fold in chosen:
            if fold in finished:
                say(f"{fold.name} is finished: {options.output / fold.name}")
            else:
                _run_fold(runtime, options, networks, inputs, fold)
        if is_main_process():  # the last of several commands finds the folds of all
            with only_writer(options.output, wait=True):
                write_out_of_fold(options.output, inputs.labels, inputs.folds, options.keep)


def describe_networks(options: ClassifierOptions, inputs: TrainingInputs) -> list[FoldNetwork]:
    """Return the networks of a fold: one, or one per target in single mode.

    Raises:
        UserError: a crop is larger than the slices.
    """
    if options.mode == "multi":
        return [FoldNetwork("", _describe_model(options, inputs, options.targets))]
    return [FoldNetwork(target, _describe_model(options, inputs, (target,))) for target in options.targets]


def _describe_model(
    options: ClassifierOptions, inputs: TrainingInputs, targets: tuple[str, ...]
) -> ClassifierSpec:
    view = _describe_view(options, inputs, targets)
    backbone = inputs.encoder.name if inputs.encoder else options.backbone
    network = create_encoder(backbone, view.channels, view.crop)
    mean, std = first_greys(network, options.source, view.windows)
    return ClassifierSpec(
        backbone=backbone,
        view=view,
        mean=mean,
        std=std,
        targets=targets,
        sequence=options.sequence,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
        reweigh=options.reweigh,
        predicts_slices=options.slice_loss > 0,
        flips=options.tta,
        offsets=tuple((index + 0.5) / options.offsets for index in range(options.offsets)),
    )


def _describe_view(options: ClassifierOptions, inputs: TrainingInputs, targets: tuple[str, ...]) -> StackView:
    prepared, shown = inputs.prepared, inputs.shown
    if options.in_plane == "body" and options.crop > prepared.size:
        raise UserError(
            f"--crop {options.crop} is larger than the {prepared.size} px slices of {options.data}"
        )
    own = TARGET_ORGANS.get(targets[0], "organs")  # in single mode
    if own == "kidneys" and options.z_range == options.in_plane and not options.spacing_mm:
        own = EACH_KIDNEY
    selection = SliceSelection.read(prepared.slice_policy)
    view = StackView(
        windows=shown.windows,
        size=prepared.size,
        crop=options.crop,
        slices=options.slices,
        spacing_mm=options.spacing_mm,
        z_range=own if options.z_range == "own" else options.z_range,
        in_plane=own if options.in_plane == "own" else options.in_plane,
        neighbours=shown.neighbours.count,
        neighbour_mm=shown.neighbours.distance_mm,
        masks=options.masks,
        selected_mm=selection.spacing_z_mm or 0.0,
        selected_count=selection.count or 0,
    )
    if not view.needs_masks:
        return view
    return replace(view, masks_from=inputs.organs.source)


def _run_fold(
    runtime: Runtime,
    options: ClassifierOptions,
    networks: list[FoldNetwork],
    inputs: TrainingInputs,
    fold: Fold,
) -> None:
    is_held_out = fold.holds_out(inputs.series.fold)
    training = inputs.series[~is_held_out & inputs.trained_on].reset_index(drop=True)
    held_out = None if fold.is_of_all else inputs.series[is_held_out].reset_index(drop=True)
    if training.empty or (held_out is not None and held_out.empty):
        more = "" if inputs.trained_on.all() else " (--doubtful keep trains on doubtful ones)"
        raise UserError(
            f"{fold.name}: {len(training)} training and {is_held_out.sum()} held-out series; it needs "
            f"both{more}"
        )
    if held_out is not None:
        refuse_shared_patients(training, held_out)
    labels = inputs.labels[~fold.holds_out(inputs.labels.patient_id.map(inputs.folds))]
    prior = weight_aware_prior(labels)
    say(f"{fold.name}: {len(training)} series to train on, {is_held_out.sum()} held out")
    inputs.warn_of_seen_patients(fold)
    if fold.is_of_all:
        options = replace(options, seed=options.seed + fold.number)
    folder = options.output / fold.name
    tables = {}
    for network in networks:
        spec = replace(network.spec, prior=prior.to_dict())
        about = {"fold": fold.name, "networks": [each.name for each in networks]}
        given = (spec, inputs, training, held_out, about, folder / network.name)
        tables[spec.columns] = _run_network(runtime, options, fold, *given)
    if is_main_process() and held_out is not None:
        ids = held_out[["patient_id", "series_id"]]
        predicted = ids.assign(fold=fold.number, **dict.fromkeys(COLUMNS, np.nan))
        for columns, table in tables.items():
            predicted[list(columns)] = table[list(columns)].to_numpy()
        write_table(predicted[["patient_id", "series_id", "fold", *COLUMNS]], folder / FOLD_TABLE)


def _run_network(
    runtime: Runtime,
    options: ClassifierOptions,
    fold: Fold,
    spec: ClassifierSpec,
    inputs: TrainingInputs,
    training: pd.DataFrame,
    held_out: pd.DataFrame | None,
    about: dict[str, Any],
    folder: Path,
) -> pd.DataFrame | None:
    """Train one network on the `training` series, save it with the metadata `about`, and predict the
    held-out series."""
    model = build_model(spec, options, fold.number)
    if find_checkpoint(folder, "auto") is None:
        view = spec.view
        given = (view.windows, view.neighbours, view.mask_channels)
        say(f"first weights: {load_first_weights(model.encoder, options.source, *given)}")
    averaged = train_network(runtime, model, spec, options, inputs, training, folder, held_out)
    if is_main_process():
        patients = sorted(set(training.patient_id))
        save_classifier(folder / MODEL, averaged, spec, **about, training_patients=patients)
    predicted = None
    if held_out is not None:
        predicted = predict_held_out(runtime, averaged, spec, inputs, held_out, options)
    runtime.release()
    return predicted


def build_model(spec: ClassifierSpec, options: ClassifierOptions, fold: int) -> TraumaClassifier:
    """Build a classifier of random weights from (seed, fold)."""
    with torch_seed(options.seed, fold):
        model = TraumaClassifier(spec, options.drop_path, options.organ_loss > 0)
    if options.loss == "plain":  # its best constant prediction has no class weights
        weights = torch.tensor([CLASS_WEIGHTS[column] for column in spec.columns])
        model.classifier.bias.data -= weights.log()
    return model.to(memory_format=torch.channels_last)
