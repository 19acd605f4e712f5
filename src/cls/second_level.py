"""A second level: a small sequence model over what fold models say of each slice, trained on the metric.

    python -m src.cls.second_level --runs runs/cls/a runs/cls/b --data data/prepared \\
        --labels data/rsna/train.csv --folds folds/rsna2023_5fold.csv --output runs/cls/second

Every series is described by the models of its own fold, which never saw its patient. The second level of a
fold learns from the descriptions of the other folds and predicts this one, as stacking does; what it adds to
the first level's answer begins at nothing. Its folder is a run as train_cls.py leaves one: score.py and
infer.py take it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from src.cls.leaks import refuse_shared_patients
from src.cls.losses import StackLoss
from src.cls.organs import OrganIndex
from src.cls.out_of_fold import FOLD_TABLE, write_out_of_fold
from src.cls.second_model import FIRST, SECOND, SecondLevel, SecondSpec, predict_described, save_second_level
from src.cls.slice_features import FirstLevelModel, SliceFeatures, find_models, out_of_fold_features
from src.core.config import parse_options, save_options
from src.core.errors import UserError, exit_on_user_error
from src.core.files import only_writer, write_table
from src.core.log import say
from src.core.runtime import Runtime, torch_seed
from src.core.targets import COLUMNS, LABEL_COLUMNS
from src.data.folds import read_folds
from src.data.labels import read_labels
from src.data.stack import PreparedDataset
from src.nn.schedule import set_lr, warmup_cosine
from src.nn.sequence import POOLINGS, SEQUENCES


@dataclass(frozen=True)
class SecondLevelOptions:
    """Options of `python -m src.cls.second_level`."""

    runs: tuple[Path, ...]
    """Finished runs of train_cls.py on the same folds and with stacks of one length."""

    data: Path
    """Prepared data set that they were trained on."""

    labels: Path
    """Patient labels: train.csv of the competition."""

    folds: Path
    """Folds that the runs were trained with."""

    output: Path
    """Folder of the run."""

    sequence: str = "gru"
    """Sequence model over the slices: lstm, gru, transformer, or none."""

    hidden: int = 32
    """Its width, for each direction."""

    pooling: str = "attention"
    """From slices to the series: max, mean or attention."""

    dropout: float = 0.3
    """Dropout of the features."""

    epochs: int = 40
    """Passes over the series of the other folds."""

    batch: int = 32
    """Series a batch."""

    lr: float = 2e-3
    """Peak learning rate of AdamW."""

    weight_decay: float = 0.05
    """AdamW's."""

    seeds: int = 3
    """Models of each fold, averaged."""

    seed: int = 42
    """Start weights and order follow from it."""

    precision: str = "auto"
    """Of the first level's networks."""

    workers: int = 1
    """Processes that read stacks."""

    def __post_init__(self) -> None:
        for name in ("hidden", "epochs", "batch", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name, allowed in (("sequence", SEQUENCES), ("pooling", POOLINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1, got {self.dropout}")
        if min(self.workers, self.seed, self.weight_decay) < 0 or self.lr <= 0:
            raise ValueError("--workers, --seed and --weight-decay must be at least 0, --lr above 0")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(
        SecondLevelOptions, argv, prog="python -m src.cls.second_level", description=__doc__
    )
    train_second_level(options)


def train_second_level(options: SecondLevelOptions) -> None:
    """Describe all series, train and predict fold after fold, and write the tables.

    Raises:
        UserError: runs, data, labels and folds that do not belong together, or an output that is in use.
    """
    prepared = PreparedDataset.open(options.data)
    labels = read_labels(options.labels).set_index("patient_id", drop=False)
    folds = read_folds(options.folds, labels.patient_id).set_index("patient_id").fold
    series = prepared.series.assign(fold=prepared.series.patient_id.map(folds))
    if series.fold.isna().any():
        raise UserError(f"{options.labels} lacks patients of {options.data}: give its own labels")
    if any(options.output.glob("fold*")):
        raise UserError(f"{options.output} holds a run already: choose another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    with only_writer(options.output), Runtime.create(options.precision, one_process=True) as runtime:
        organs = _find_organs(prepared, options.runs, int(series.fold.min()))
        described = out_of_fold_features(options.runs, prepared, organs, series, runtime, options.workers)
        save_options(options, options.output / "config.yaml")
        for fold in sorted(int(fold) for fold in series.fold.unique()):
            _run_fold(options, described, labels, fold)
    write_out_of_fold(options.output, labels, folds)


def _run_fold(options: SecondLevelOptions, described: SliceFeatures, labels: pd.DataFrame, fold: int) -> None:
    is_held_out = (described.series.fold == fold).to_numpy()
    training, held_out = described.select(~is_held_out), described.select(is_held_out)
    refuse_shared_patients(training.series, held_out.series)
    spec = SecondSpec(
        features=training.features.shape[2],
        sequence=options.sequence,
        hidden=options.hidden,
        pooling=options.pooling,
        dropout=options.dropout,
    )
    models = [_train(options, spec, training, labels, fold, number) for number in range(options.seeds)]
    answers = torch.stack([predict_described(model, held_out) for model in models]).mean(dim=0)
    predicted = pd.DataFrame(answers.double().numpy(), columns=list(COLUMNS))
    folder = options.output / f"fold{fold}"
    for place, run in enumerate(options.runs):
        for path in find_models(run, fold):
            target = folder / FIRST / str(place) / path.parent.relative_to(run / f"fold{fold}") / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
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


def _find_organs(prepared: PreparedDataset, runs: tuple[Path, ...], fold: int) -> OrganIndex | None:
    """The masks that the networks of the runs were trained with, None where none needs any."""
    views = [FirstLevelModel.load(path).spec.view for run in runs for path in find_models(run, fold)]
    wanted = [view for view in views if view.needs_masks]
    if not wanted:
        return None
    organs = OrganIndex.find(prepared, wanted[0].masks_from)
    organs.warn_of_unknown(prepared.series, wanted[0])
    return organs


if __name__ == "__main__":
    with exit_on_user_error():
        main()
