"""Training of one network of a fold, epoch by epoch, and the prediction of series."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from src.cls.dataset import StackBatch, StackDataset
from src.cls.inputs import TrainingInputs
from src.cls.losses import StackLoss, organ_loss, slice_loss
from src.cls.model import ClassifierOutput, ClassifierSpec, predict_stack
from src.cls.options import ClassifierOptions
from src.cls.order import RunSampler, SeriesOrder
from src.cls.stack_mixing import StackMixer
from src.cls.state import FoldState, restore_state, save_state
from src.core.errors import UserError
from src.core.log import MetricsLog, is_main_process, progress, say
from src.core.runtime import Runtime, sample_rng, torch_seed
from src.data.packed import PackedSlices
from src.nn.augmentation import Augmentation
from src.nn.loading import StackLoader
from src.nn.schedule import set_lr, warmup_cosine


@dataclass
class FoldTraining:
    """What the training of a network needs besides its state."""

    runtime: Runtime
    spec: ClassifierSpec
    options: ClassifierOptions
    inputs: TrainingInputs
    series: pd.DataFrame
    """to train on"""
    folder: Path
    """of checkpoints and metrics"""

    def __post_init__(self) -> None:
        options = self.options
        patients = set(self.series["patient_id"])
        self.labels = self.inputs.labels[self.inputs.labels["patient_id"].isin(patients)]
        self.order = SeriesOrder(
            self.series,
            self.labels,
            options.batch,
            options.class_balance,
            self.spec.injuries,
            options.seed,
            self.runtime.world,
        )
        self.importance = torch.from_numpy(self.order.importance).float()
        self.mixer = StackMixer(options.mixup, options.cutmix)
        self.loss = StackLoss(self.labels, options.loss, options.smoothing, self.spec.targets)
        self.loss.to(self.runtime.device)
        self.packed = open_cache(options, self.spec, self.inputs)
        self.steps_per_epoch = -(-self.order.batches // options.accumulation)

    def run(self, state: FoldState) -> None:
        """Train to the end of the schedule, from the folder's checkpoint where there is one.

        Raises:
            UserError: the loss is not finite; the message names the series of the batch.
        """
        checkpoint = self.folder / "last.pt"
        if checkpoint.exists():
            restore_state(checkpoint, state, self.runtime)
            say(f"{self.folder.name} continues after epoch {state.epoch}")
        log = MetricsLog(self.folder, drop_after=state.epoch) if is_main_process() else None
        state.ema.to(self.runtime.device)
        state.model = self.runtime.share_batch_statistics(state.model)
        batches = self.read(range(state.epoch, self.options.epochs))
        model, optimizer = self.runtime.prepare(state.model, state.optimizer)
        while state.epoch < self.options.epochs:
            terms = self.train_epoch(state, model, optimizer, batches)
            state.epoch += 1
            means = torch.stack([torch.stack(list(term.values())) for term in terms]).mean(dim=0)
            means = (self.runtime.sum(means) / self.runtime.world).tolist()
            figures = dict(zip(terms[0], means, strict=True))
            if log is not None:
                log.log(state.epoch, **figures, lr=optimizer.param_groups[-1]["lr"])
                save_state(checkpoint, state, self.runtime)
            say(f"{self.folder.name} epoch {state.epoch:3d}/{self.options.epochs} loss {figures['loss']:.4f}")
        if log is not None:
            log.close()

    def read(self, epochs: range) -> Iterator[StackBatch]:
        """This process's batches of some epochs."""
        sampler = RunSampler(self.order, epochs, self.runtime.rank)
        return iter(StackLoader(self.dataset(), self.options.workers, batch_sampler=sampler))

    def train_epoch(
        self,
        state: FoldState,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterator[StackBatch],
    ) -> list[dict[str, Tensor]]:
        """Train the epoch that the state stands at, on the next ones of `batches`; the losses of each batch.

        Raises:
            UserError: the loss is not finite.
        """
        options, runtime = self.options, self.runtime
        draws = self.order.share(state.epoch, runtime.rank)
        total = options.epochs * self.steps_per_epoch
        warmup = round(options.warmup_epochs * self.steps_per_epoch)
        terms = []
        model.train()
        epoch = islice(batches, len(draws))
        for index, batch in enumerate(progress(epoch, len(draws), self.folder.name)):
            first = index - index % options.accumulation
            group = min(options.accumulation, len(draws) - first)
            set_lr(optimizer, warmup_cosine(state.step, total, warmup, options.lr))
            # dropout: other noise in every process, the same in a resumed run
            with torch_seed(options.seed, state.epoch, index, runtime.rank):
                figures = self.losses(model, batch, draws[index], state.epoch, index)
            if not torch.isfinite(figures["loss"]):
                raise UserError(f"{self.folder.name}: {self._describe_failure(draws[index])}")
            runtime.backward(figures["loss"] / group)
            terms.append({name: value.detach() for name, value in figures.items()})
            if index == first + group - 1:
                runtime.clip_grad_norm(model.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
                state.step += 1
                state.ema.update(runtime.unwrap(model), step=state.step)
        return terms

    def losses(
        self, model: torch.nn.Module, batch: StackBatch, chosen: np.ndarray, epoch: int, index: int
    ) -> dict[str, Tensor]:
        """The loss of a batch under `loss`, and its parts."""
        options, device = self.options, self.runtime.device
        rng = sample_rng(options.seed, epoch, index * self.runtime.world + self.runtime.rank)
        importance = self.importance[self.order.series_of(chosen)].to(device)
        batch = StackBatch(*(part.to(device, non_blocking=True) for part in batch))
        batch, importance = self.mixer(batch, importance, rng)
        decoded = choose_slices_to_decode(batch, options.organ_slices, rng) if options.organ_loss else None
        padding = batch.padding if self.spec.view.is_padded else None
        with self.runtime.autocast():
            answer: ClassifierOutput = model(batch.images, padding, decoded)
        losses = self.loss(answer.logits, batch.targets, importance)
        names = [*self.spec.targets, "any_injury"][: len(losses)]
        figures = {"loss": losses.mean(), **dict(zip(names, losses, strict=True))}
        if answer.slice_logits is not None:
            figures["slices"] = slice_loss(answer.slice_logits, batch.slice_targets, self.spec.injuries)
            figures["loss"] = figures["loss"] + options.slice_loss * figures["slices"]
        if decoded is not None:
            maps = batch.organs.flatten(0, 1)[decoded]
            is_known = (batch.has_organs[:, None] & ~batch.padding).flatten()[decoded]
            figures["organs"] = organ_loss(answer.organ_logits, maps, is_known)
            figures["loss"] = figures["loss"] + options.organ_loss * figures["organs"]
        return figures

    def dataset(self) -> StackDataset:
        """The stacks of the training series, augmented."""
        options, inputs = self.options, self.inputs
        return StackDataset(
            inputs.prepared,
            self.series,
            self.spec.view,
            inputs.organs,
            labels=self.labels,
            slice_targets=inputs.slice_targets if options.slice_loss else None,
            with_organs=options.organ_loss > 0,
            augmentation=augmentation(options),
            packed=self.packed,
            seed=options.seed,
        )

    def _describe_failure(self, chosen: np.ndarray) -> str:
        rows = self.series.iloc[self.order.series_of(chosen)]
        names = ", ".join(f"{row.patient_id}/{row.series_id}" for row in rows.itertuples())
        return f"the loss is not finite on series {names}: lower --lr, or use --precision bf16 or fp32"


def choose_slices_to_decode(batch: StackBatch, count: int, rng: np.random.Generator) -> Tensor:
    """Places in B * T of `count` slices of each stack, int64."""
    stacks, slices = batch.images.shape[:2]
    own = [stack * slices + rng.choice(slices, min(count, slices), replace=False) for stack in range(stacks)]
    return torch.from_numpy(np.concatenate(own)).to(batch.images.device)


def predict_series(
    runtime: Runtime,
    model: torch.nn.Module,
    spec: ClassifierSpec,
    inputs: TrainingInputs,
    series: pd.DataFrame,
    options: ClassifierOptions,
) -> pd.DataFrame:
    """`patient_id, series_id` and the probabilities of the network's columns, a row of each of `series`.

    Under torchrun every process predicts its share, and gets all rows.
    """
    model.eval()
    share = series.iloc[runtime.rank :: runtime.world]
    total = 0.0
    packed = open_cache(options, spec, inputs)
    for offset in spec.offsets:
        dataset = StackDataset(inputs.prepared, share, spec.view, inputs.organs, packed=packed, offset=offset)
        answers = []
        for batch in StackLoader(dataset, options.workers, batch_size=options.batch):
            images, padding = (part.to(runtime.device) for part in (batch.images, batch.padding))
            with runtime.autocast():
                answers.append(predict_stack(model, spec, images, padding, spec.flips).cpu())
        total = total + torch.cat(answers).double().numpy() if answers else total
    rows = []
    if len(share):
        table = share[["patient_id", "series_id"]].reset_index(drop=True)
        values = pd.DataFrame(total / len(spec.offsets), columns=list(spec.columns))
        rows = table.join(values).to_dict("records")
    predicted = pd.DataFrame(runtime.gather_rows(rows))
    return series[["patient_id", "series_id"]].merge(predicted, validate="1:1")


def open_cache(
    options: ClassifierOptions, spec: ClassifierSpec, inputs: TrainingInputs
) -> PackedSlices | None:
    """The cache of raw slices, where the options name one."""
    if options.cache is None:
        return None
    return PackedSlices(inputs.prepared, spec.view.windows, options.cache)


def augmentation(options: ClassifierOptions) -> Augmentation:
    """The augmentation that the options ask for."""
    return Augmentation(
        flip=options.flip,
        rotate90=options.rotate90,
        affine=options.affine,
        gamma=options.gamma,
        dropout=options.coarse_dropout,
    )
