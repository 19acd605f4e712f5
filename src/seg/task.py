"""The segmentation run: data, steps, log lines, checkpoints, and the score on patients left out."""

import tempfile
import time
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch

from src.core.checkpoint import find_checkpoint
from src.core.config import plain_options, save_options
from src.core.errors import UserError
from src.core.files import atomic_path, only_writer, write_table
from src.core.log import MetricsLog, format_table, is_main_process, say, warn
from src.core.runtime import Runtime, torch_seed
from src.data.png import write_png
from src.nn.first_weights import patients_seen_by
from src.nn.loading import StackLoader
from src.nn.schedule import set_lr, warmup_cosine
from src.seg.dataset import SliceBatch, SliceDataset, SliceOrder
from src.seg.evaluate import score_series
from src.seg.mask_writer import segment_series
from src.seg.model import MODEL, save_segmenter
from src.seg.options import SegOptions
from src.seg.sheet import mask_sheet
from src.seg.split import PARTS, SegData, open_data
from src.seg.state import (
    build_state,
    clear_folder,
    describe_pair,
    restore_state,
    run_identity,
    save_state,
)
from src.seg.step import StepResult, take_step
from src.seg.volume_scores import summarise

MOST_SKIPPED = 25
"""Steps in a row that fp16's scaler may skip: from its first scale, 2^16, to far below 1."""


def train_pair(options: SegOptions) -> Path:
    """Train the pair as `options` say, from the start or from a checkpoint; export it, and score it.

    Under torchrun every process calls this; rank 0 alone writes.

    Returns:
        The path of `segmenter.safetensors`.

    Raises:
        UserError: data that cannot be used, a checkpoint of another run, or a loss that is no longer a
        number.
    """
    output = Path(options.output)
    data = open_data(options)
    checkpoint = find_checkpoint(output, options.resume)
    with Runtime.create(options.precision) as runtime:
        run = SegmentationRun(options, data, runtime, checkpoint)
        if not is_main_process():
            run.train(None)
            return output / MODEL
        output.mkdir(parents=True, exist_ok=True)
        with only_writer(output):
            run.open_folder()
            with closing(MetricsLog(output, drop_after=run.state.step)) as log:
                run.train(log)
            run.export()
            run.score_left_out(output / "left_out")
    say(f"wrote {output / MODEL}")
    return output / MODEL


class SegmentationRun:
    """The steps of a run, with what is logged, saved and scored between them."""

    def __init__(self, options: SegOptions, data: SegData, runtime: Runtime, checkpoint: Path | None) -> None:
        self.options, self.data, self.runtime, self.checkpoint = options, data, runtime, checkpoint
        self.output = Path(options.output)
        self.state, self.spec, self.loaded = build_state(options, describe_pair(options, data.size), runtime)
        self.state.ema.to(runtime.device)
        self.state.pair, self.state.optimizer = runtime.prepare(self.state.pair, self.state.optimizer)
        self.identity = run_identity(options, data)
        if checkpoint:
            restore_state(checkpoint, self.state, runtime, self.identity)
        self.dataset = SliceDataset(data, options)
        self.order = SliceOrder(options, self.state.step, runtime.rank, runtime.world)
        self.log: MetricsLog | None = None

    def open_folder(self) -> None:
        """Say what the run is, and write what is known of it before the first step."""
        series = self.data.series
        counts = ", ".join(f"{(series['part'] == part).sum()} {part}" for part in PARTS)
        where = str(self.runtime.device)
        where += f", {self.runtime.world} processes" if self.runtime.world > 1 else ""
        say(f"series: {counts} ({series['patient_id'].nunique()} patients); {where}")
        if self.checkpoint:
            say(f"continuing {self.checkpoint} after step {self.state.step} of {self.options.steps}")
        else:
            clear_folder(self.options)
            if self.loaded:
                say(f"encoder {self.options.encoder}: {self.loaded}")
        self._warn_of_seen_patients()
        save_options(self.options, self.output / "config.yaml")
        write_table(series[["set", "patient_id", "series_id", "part"]], self.output / "split.csv")

    def _warn_of_seen_patients(self) -> None:
        if not self.options.encoder:
            return
        left_out = set(self.data.part("left out")["patient_id"])
        seen = left_out & set(patients_seen_by(self.options.encoder))
        if seen:
            warn(
                f"the encoder was pre-trained on {len(seen)} of the {len(left_out)} patients left out "
                "(images only, no labels: allowed, but their score may flatter)"
            )

    def train(self, log: MetricsLog | None) -> None:
        """Run the steps that are left.

        Args:
            log: where metrics go; None in the processes that do not write.

        Raises:
            UserError: a loss or the gradient is not finite (the message names the step and the series), or
            another process of the run stopped.
        """
        self.log = log
        with self.runtime.lost_peer_in_one_line():
            self._train()

    def _train(self) -> None:
        options, state = self.options, self.state
        warmup_steps = round(options.warmup * options.steps)
        results: list[StepResult] = []
        started, skipped = time.perf_counter(), 0
        for batch in StackLoader(self.dataset, options.workers, batch_sampler=self.order):
            lr = warmup_cosine(state.step, options.steps, warmup_steps, options.lr)
            set_lr(state.optimizer, lr)
            # dropout: other noise in every process, the same in a resumed run
            with torch_seed(options.seed, state.step, self.runtime.rank):
                result = self._take_step(batch)
            skipped = skipped + 1 if result.was_skipped else 0
            if not result.is_finite or skipped == MOST_SKIPPED:
                raise UserError(self._describe_failure(result))
            state.step += 1
            results.append(result)
            is_last = state.step == options.steps
            if state.step % options.log_every and not is_last:
                continue
            state.seconds += time.perf_counter() - started
            figures = self._report(results, lr)
            if options.score_every and state.step % options.score_every == 0 and not is_last:
                figures |= self._score_on_the_way()
            if self.log is not None:
                self.log.log(state.step, **figures)
                if state.step % options.save_every == 0 or is_last:
                    save_state(self.output / "last.pt", state, self.runtime, self.identity)
            results, started = [], time.perf_counter()

    def _take_step(self, batch: SliceBatch) -> StepResult:
        try:
            return take_step(self.state, batch, self.options, self.runtime)
        except torch.OutOfMemoryError:
            raise UserError(
                "the GPU's memory is too small for a step: lower --batch and --unlabelled-batch"
            ) from None

    def _report(self, results: list[StepResult], lr: float) -> dict[str, float]:
        """Print the means since the last report; every process takes part in them."""
        figures = {}
        for prefix, rows in (
            ("loss_", [result.terms for result in results]),
            ("", [result.monitors for result in results]),
        ):
            means = torch.stack([torch.stack(list(row.values())) for row in rows]).mean(0)
            means = (self.runtime.sum(means) / self.runtime.world).tolist()
            figures |= {prefix + name: mean for name, mean in zip(rows[0], means, strict=True)}
        losses = {name: value for name, value in figures.items() if name.startswith("loss_")}
        figures = {"loss": sum(losses.values()), **figures, "lr": lr, "seconds": self.state.seconds}
        terms = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        shares = ", ".join(f"{name} {figures[name]:.3f}" for name in results[0].monitors)
        say(
            f"step {self.state.step}/{self.options.steps}  loss {figures['loss']:.3f} ({terms})  {shares}  "
            f"lr {lr:.1e}  {self.state.seconds:.0f} s"
        )
        return figures

    def export(self) -> None:
        """Write the average of the weights, with how it was trained and on whom."""
        save_segmenter(
            self.output / MODEL,
            self.state.ema.module,
            self.spec,
            script="train_seg.py",
            steps=self.state.step,
            options=plain_options(self.options),
            patients={part: sorted(set(self.data.part(part)["patient_id"])) for part in PARTS},
        )

    def score_left_out(self, folder: Path) -> None:
        """Segment the series left out into `folder`, score those with masks, and draw them.

        Masks go to `<set>/<patient_id>/<series_id>`, scores to scores.csv, pictures to sheets.
        """
        rows = self._score(folder)
        if rows.empty:
            return
        write_table(rows.drop(columns="set"), self.output / "scores.csv")
        say(f"patients left out:\n{format_table(summarise(rows))}")
        for series in rows[["set", "patient_id", "series_id"]].drop_duplicates().itertuples():
            dataset = self.data.sets[series.set]
            masks = folder / str(series.set) / series.patient_id / series.series_id
            picture = mask_sheet(dataset, series.patient_id, series.series_id, masks)
            with atomic_path(self.output / "sheets" / series.patient_id / f"{series.series_id}.png") as path:
                write_png(path, picture)

    def _score_on_the_way(self) -> dict[str, float]:
        if self.log is None:
            return {}
        with tempfile.TemporaryDirectory(prefix="left-out-") as folder:
            rows = self._score(Path(folder))
        if rows.empty:
            return {}
        mean = summarise(rows).iloc[-1]
        say(f"  left out: dice {mean['dice']:.4f}, hd95 {mean['hd95_mm']:.1f} mm")
        return {"dice": mean["dice"], "hd95_mm": mean["hd95_mm"]}

    def _with_truth(self) -> pd.DataFrame:
        left_out = self.data.part("left out")
        return left_out[left_out["has_masks"]].reset_index(drop=True)

    def _score(self, folder: Path) -> pd.DataFrame:
        """The rows of `evaluate_predictions`, with the set; none where nobody can be scored.

        A series that cannot be read is told of and not scored: it must not end the run.
        """
        pair = self.state.ema.module
        pair.eval()
        series, tables = self._with_truth(), []
        for number in sorted(series["set"].unique()):
            dataset = self.data.sets[number]
            chosen = dataset.series.merge(series[series["set"] == number][["patient_id", "series_id"]])
            target = folder / str(number)
            outcomes = segment_series(
                pair, self.spec, self.runtime, dataset, chosen, target, workers=self.options.workers
            )
            for (_, row), outcome in zip(chosen.iterrows(), outcomes, strict=True):
                try:
                    if outcome.reason:
                        raise UserError(outcome.reason)
                    scores = score_series(dataset, row, target, self.options.organs)
                except UserError as error:
                    warn(f"{outcome.patient_id}/{outcome.series_id} is not scored: {error}")
                else:
                    tables.append(scores.assign(set=number))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _describe_failure(self, result: StepResult) -> str:
        terms = ", ".join(f"{name} {value.item():.3g}" for name, value in result.terms.items())
        keys = [key for rank in range(self.runtime.world) for key in self._share_of(rank)]
        return (
            f"step {self.state.step + 1}: loss or gradient is not finite ({terms}) for series "
            f"{self.dataset.name_series(keys)}: go on from the last checkpoint with --precision fp32, or "
            "start anew with a lower --lr and --resume never"
        )

    def _share_of(self, rank: int) -> list:
        return SliceOrder(self.options, self.state.step, rank, self.runtime.world).share(self.state.step)
