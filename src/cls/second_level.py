"""A second level: a small sequence model over what fold models say of each slice, trained on the metric.

    python -m src.cls.second_level --runs runs/cls/a runs/cls/b --data data/prepared \\
        --labels data/rsna/train.csv --folds folds/rsna2023_5fold.csv --output runs/cls/second

Every series is described by the models of its own fold, which never saw its patient. The second level of a
fold learns from the descriptions of the other folds and predicts this one, as stacking does; what it adds to
the first level's answer begins at nothing. Its folder is a run as train_cls.py leaves one: score.py and
infer.py take it.

The same command continues what was interrupted: descriptions, which take longest, are kept fold by fold in
the folder, and so is every fold that is trained. To train with other options on the same descriptions, give
--resume never.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from src.cls.feature_store import FEATURES, FeatureStore, out_of_fold_features
from src.cls.losses import StackLoss
from src.cls.out_of_fold import FOLD_TABLE, refuse_shared_patients, write_out_of_fold
from src.cls.second_inputs import FeatureSource, SecondInputs, name_inputs
from src.cls.second_model import FIRST, SECOND, SecondLevel, SecondSpec, predict_described, save_second_level
from src.cls.second_options import FREE_TO_CHANGE, SecondLevelOptions
from src.cls.slice_features import SliceFeatures
from src.core.config import parse_options, plain_options, save_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import discard, require_writable, whole_folder, write_json, write_table
from src.core.log import say
from src.core.run_folder import differing_options, only_writer
from src.core.runtime import Runtime, torch_seed
from src.core.targets import COLUMNS, LABEL_COLUMNS
from src.nn.schedule import set_lr, warmup_cosine

PROGRAM = "python -m src.cls.second_level"
RECORD = "run.json"


def main(argv: list[str] | None = None) -> None:
    train_second_level(parse_options(SecondLevelOptions, argv, prog=PROGRAM, description=__doc__))


def train_second_level(options: SecondLevelOptions) -> None:
    """Describe all series, train and predict fold after fold, and write the tables; continue what is there.

    Raises:
        UserError: runs, data, labels and folds that do not belong together, features in the folder that do
            not fit them, or an output that is in use, or holds a run with other options or another program's.
    """
    with Runtime.create(options.precision, one_process=True) as runtime:
        inputs = SecondInputs.read(options, runtime.precision)
        require_writable(options.output / RECORD)
        with only_writer(options.output):
            _claim_folder(options, inputs)
            _train_folds(options, inputs, runtime)
            write_out_of_fold(options.output, inputs.labels, inputs.folds)


def _train_folds(options: SecondLevelOptions, inputs: SecondInputs, runtime: Runtime) -> None:
    """Train and predict the folds that are not finished; where all are, no features are needed."""
    unfinished = []
    for fold, source in inputs.sources.items():
        folder = options.output / f"fold{fold}"
        if (folder / FOLD_TABLE).exists():
            say(f"fold {fold} is finished: {folder}")
        else:
            unfinished.append(source)
    if not unfinished:
        return
    store, sources = FeatureStore(options.output), list(inputs.sources.values())
    if options.resume == "never":
        store.drop_misfits(sources)
    described = out_of_fold_features(store, sources, inputs.prepared, inputs.organs, runtime, options.workers)
    for source in unfinished:
        _run_fold(options, described, inputs.labels, source)


def _run_fold(
    options: SecondLevelOptions, described: SliceFeatures, labels: pd.DataFrame, source: FeatureSource
) -> None:
    """Train the models of a fold and predict it; its folder appears by one rename, with all that is in it."""
    is_held_out = (described.series.fold == source.fold).to_numpy()
    training, held_out = described.select(~is_held_out), described.select(is_held_out)
    refuse_shared_patients(training.series, held_out.series)
    spec = SecondSpec(
        features=training.features.shape[2],
        sequence=options.sequence,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
    )
    models = [_train(options, spec, training, labels, source.fold, number) for number in range(options.seeds)]
    answers = torch.stack([predict_described(model, held_out) for model in models]).mean(dim=0)
    predicted = pd.DataFrame(answers.double().numpy(), columns=list(COLUMNS))
    with whole_folder(options.output / f"fold{source.fold}") as folder:
        for network in source.networks:
            network.copy_into(folder)
        save_second_level(folder / SECOND, models, spec)
        write_table(held_out.series.join(predicted), folder / FOLD_TABLE)


def _train(
    options: SecondLevelOptions,
    spec: SecondSpec,
    training: SliceFeatures,
    labels: pd.DataFrame,
    fold: int,
    number: int,
) -> SecondLevel:
    """One model of a fold, from the series of the others."""
    targets = torch.tensor(labels.loc[training.series.patient_id, list(LABEL_COLUMNS)].to_numpy())
    loss = StackLoss(labels.loc[training.series.patient_id.unique()], "metric")
    with torch_seed(options.seed, fold, number):
        model = SecondLevel(spec)
        model.scale_to(training.features, training.padding)
        optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        batches = -(-len(targets) // options.batch)
        total = options.epochs * batches
        model.train()
        for step in range(total):
            if step % batches == 0:
                order = torch.randperm(len(targets))
            rows = order[(step % batches) * options.batch :][: options.batch]
            set_lr(optimizer, warmup_cosine(step, total, batches, options.lr))
            logits = model(training.features[rows], training.padding[rows], training.base[rows])
            value = loss(logits, targets[rows]).mean()
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    say(f"fold {fold}, second level {number + 1}/{options.seeds}: loss {value.item():.4f} at the end")
    return model.eval()


def _claim_folder(options: SecondLevelOptions, inputs: SecondInputs) -> None:
    """Make `options.output` the folder of this run; what cannot be continued in it goes.

    Raises:
        UserError: finished folds there are of another program, or were trained with other options or inputs.
    """
    output, record = options.output, options.output / RECORD
    identity = {"program": PROGRAM, "options": plain_options(options), "inputs": inputs.identity}
    saved = _read_record(record)
    folders = [folder for folder in output.glob("fold[0-9]*") if folder.is_dir()]
    tables = [output / name for name in ("oof.csv", "oof_series.csv", "scores.csv")]
    foreign = [path for folder in folders for path in folder.rglob("*") if _is_foreign(path, folder)]
    if not saved and any(path.exists() for path in (*tables, *foreign)):
        raise UserError(f"{output} holds a run of another program: choose another --output")
    stale = [folder for folder in folders if options.resume == "never" or not (folder / FOLD_TABLE).exists()]
    if len(stale) < len(folders):
        changed = differing_options(saved["options"], identity["options"], FREE_TO_CHANGE)
        changed += [name for name, value in inputs.identity.items() if saved["inputs"].get(name) != value]
        if changed:
            raise UserError(
                f"{output} holds a run with other {name_inputs(changed)}: start anew with --resume never, or "
                "choose another --output"
            )
    else:  # before the folds, so that nobody takes the tables for the new run's
        for table in tables:
            table.unlink(missing_ok=True)
    for leftover in (*stale, *output.glob(".*.partial"), *output.glob(f"{FEATURES}/.*.partial")):
        discard(leftover)
    write_json(identity, record)
    save_options(options, output / "config.yaml")


def _read_record(record: Path) -> dict[str, Any]:
    """What this program wrote of the run in the folder; empty where it did not."""
    try:
        saved = json.loads(record.read_text(encoding="utf-8"))
        _ = saved["options"].items(), saved["inputs"].items()
        return saved if saved["program"] == PROGRAM else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_foreign(path: Path, folder: Path) -> bool:
    """Whether something in a fold's folder is not what this program leaves of an unfinished fold."""
    return path.is_file() and path.relative_to(folder).parts[0] not in (FIRST, SECOND)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
