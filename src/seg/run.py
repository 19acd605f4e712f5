"""The segmentation run: its training method for `src/nn/training.py`, and the files in its folder."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from src.core.config import plain_options, save_options
from src.core.errors import UserError
from src.core.files import write_table
from src.core.log import is_main_process, say, warn
from src.core.run_folder import clear_training, digest_rows, find_checkpoint, only_writer
from src.core.runtime import Runtime, torch_seed
from src.data.doubtful import say_doubtful
from src.data.selection import Neighbours
from src.nn.encoder import default_greys, find_encoder_file
from src.nn.encoder_input import EncoderInput, warn_of_another_input
from src.nn.execution import StaticNetwork, set_execution
from src.nn.first_weights import load_first_weights, patients_seen_by
from src.nn.loading import StackLoader
from src.nn.schedule import LoopSettings
from src.nn.training import LossAndMetrics, Method, Progress, TrainingLoop
from src.nn.weights_file import to_tuples
from src.seg.dataset import SliceBatch, SliceDataset, SliceOrder
from src.seg.held_out import score_during_training, score_held_out
from src.seg.losses import label_loss, verification_loss
from src.seg.model import MODEL, SegmenterPair, SegmenterSpec, check_pair, save_segmenter
from src.seg.options import SegOptions
from src.seg.split import PARTS, SegData, open_data
from src.seg.unlabelled import MixedBatch, mix_unlabelled, unlabelled_terms

FREE_TO_CHANGE = (
    *(
        "data",
        "doubtful",
        "labelled",
        "output",
        "resume",
        "cache",
        "workers",
        "precision",
        "execution",
        "track",
    ),
    *("log_every", "save_every", "score_every", "organs"),
)
"""Options that a resumed run may change: data are identified by their series and parts, not by path."""

COLUMNS = ["set", "patient_id", "series_id", "part"]
"""Columns of split.csv, which lists the part of each series."""


def train_pair(options: SegOptions) -> Path:
    """Train the pair according to `options`, from the start or from a checkpoint; export it, and score it.

    Under torchrun every process calls this function; only rank 0 writes.

    Returns:
        The path of `segmenter.safetensors`.

    Raises:
        UserError: unusable data, a checkpoint of another run, or a loss that is no longer
            finite.
    """
    output = options.output
    data = open_data(options)
    options = replace(options, windows=data.window_names)
    say_doubtful(data.doubtful, options.doubtful)
    checkpoint = find_checkpoint(output, options.resume)
    if checkpoint is None:
        for source in dict.fromkeys(options.sources):
            warn_of_another_input(source, EncoderInput(options.windows, Neighbours(options.slices)))
    with Runtime.create(options.precision) as runtime:
        method = PairTraining(options, data, runtime, with_first_weights=checkpoint is None)
        identity = {"options": plain_options(options), "series": digest_rows(data.series[COLUMNS])}
        loop = TrainingLoop(method, LoopSettings.of(options), runtime, output, identity, FREE_TO_CHANGE)
        if checkpoint:
            loop.resume(checkpoint, "train_seg.py")
        if not is_main_process():
            loop.run()
            return output / MODEL
        with only_writer(output):
            _open_folder(options, method, checkpoint, loop.step)
            loop.run()
            method.export(output / MODEL, loop.step)
            score_held_out(method.ema.module, method.spec, data, runtime, options)
    say(f"wrote {output / MODEL}")
    return output / MODEL


class PairTraining(Method):
    """The two sub-networks of a run, the moving average (EMA) of their weights, and the loss of a batch."""

    memory_advice = "lower --batch and --unlabelled-batch"
    failure_advice = (
        "go on from the last checkpoint with --precision fp32, or start from scratch with a lower --lr and "
        "--resume never"
    )

    def __init__(
        self, options: SegOptions, data: SegData, runtime: Runtime, with_first_weights: bool = True
    ) -> None:
        """Create pair, moving average and optimiser for the first step; the seed determines initial weights.

        Args:
            with_first_weights: load `--encoder` and `--first-weights`; a checkpoint contains its own weights.

        Raises:
            UserError: a backbone or decoder cannot be built, first weights do not fit, or the processes
                cannot share a batch evenly.
        """
        self.options, self.data, self.runtime = options, data, runtime
        spec = describe_pair(options, options.reduced(data.size))
        with torch_seed(options.seed):
            pair = SegmenterPair(spec, options.embedding if options.contrast else 0)
        unlabelled = options.unlabelled_batch if options.uses_unlabelled else 0
        check_pair(pair, spec, (options.batch + unlabelled) // runtime.world)
        if with_first_weights:
            spec = _load_first_weights(pair, spec, options)
        self.spec = spec
        pair = runtime.share_batch_statistics(pair).to(memory_format=torch.channels_last)
        pair.train()
        self.network: torch.nn.Module = pair
        self.optimizer = torch.optim.AdamW(
            pair.parameters(),
            lr=options.lr,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self.ema = ModelEmaV3(pair, decay=options.ema_decay, use_warmup=True)
        """moving average of the weights, which is scored and exported"""
        self.ema.to(runtime.device)
        self.dataset = SliceDataset(data, options)
        self._order = SliceOrder(options, 0, runtime.rank, runtime.world)

    def read(self, first_batch: int) -> Iterator[SliceBatch]:
        order = SliceOrder(self.options, first_batch, self.runtime.rank, self.runtime.world)
        return iter(StackLoader(self.dataset, self.options.workers, batch_sampler=order))

    def compute_loss(self, batch: SliceBatch, number: int, step: int) -> LossAndMetrics:
        """Return the sum of all terms with their weights.

        Under torchrun each process learns from its part of the batch and gradients are averaged. Dice,
        reliability and prototypes are computed per part, but the teaching sub-network is the same in all
        processes.
        """
        options, runtime = self.options, self.runtime
        strong = batch.strong.to(runtime.device, non_blocking=True)  # (B, 2, H, W, C)
        labelled = int(batch.is_labelled.sum())
        labels = batch.mask[:labelled].to(runtime.device, non_blocking=True).long()  # (L, H, W)
        mixed: MixedBatch | None = None
        if options.uses_unlabelled:
            weak = batch.weak[labelled:].to(runtime.device, non_blocking=True)  # (U, H, W, C)
            with runtime.autocast():
                mixed = mix_unlabelled(self.ema.module, strong, weak, labels, options.mix)
            strong = mixed.strong
        with runtime.autocast():
            pair = self.network(strong[:, 0], strong[:, 1])

        supervised = [label_loss(output.logits[:labelled], labels) for output in pair]
        terms = {"supervised_a": supervised[0], "supervised_b": supervised[1]}
        if options.verification:
            a, b = (output.logits[:labelled].float().softmax(1) for output in pair)
            errors = [verification_loss(*each, labels, options.confidence) for each in ((a, b), (b, a))]
            terms["verification"] = options.verification * (errors[0] + errors[1])
        chosen = [output.logits.detach().argmax(1) for output in pair]  # (B, H, W)
        shares = {"agreement": (chosen[0] == chosen[1]).float().mean()}
        if mixed is not None:
            # summed over processes, so that the same sub-network teaches in all of them
            errors = runtime.sum(torch.stack(supervised).detach())
            a_teaches = errors[0] <= errors[1]
            more, shares_of_unlabelled = unlabelled_terms(pair, mixed, labels, a_teaches, step, options)
            terms |= more
            shares |= shares_of_unlabelled
        metrics = {f"loss_{name}": term.detach() for name, term in terms.items()}
        return LossAndMetrics(torch.stack(list(terms.values())).sum(), metrics | shares)

    def before_first_step(self) -> None:
        options, size, world = self.options, self.spec.size, self.runtime.world
        unlabelled = options.unlabelled_batch if options.uses_unlabelled else 0
        batches = [(self.runtime.unwrap(self.network), options.batch + unlabelled)]
        if unlabelled:
            batches.append((self.ema.module, unlabelled))
        parts = [
            StaticNetwork(net, (batch // world, size, size, self.spec.channels), torch.uint8)
            for pair, batch in batches
            for net in (pair.a, pair.b)
        ]
        set_execution(options.execution, parts, self.runtime)

    def after_step(self, step: int) -> None:
        pair = self.runtime.unwrap(self.network)
        self.runtime.share_buffers(pair)  # otherwise the moving averages would differ between processes
        self.ema.update(pair, step=step)

    def report(self, at: Progress, means: dict[str, float]) -> dict[str, float]:
        options = self.options
        losses = {name: value for name, value in means.items() if name.startswith("loss_")}
        metrics = {"loss": sum(losses.values()), **means, "lr": at.lr, "seconds": at.seconds}
        terms = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        shares = ", ".join(f"{name} {value:.3f}" for name, value in means.items() if name not in losses)
        say(
            f"step {at.step}/{options.steps}  loss {metrics['loss']:.3f} ({terms})  {shares}  "
            f"lr {at.lr:.1e}  {at.seconds:.0f} s"
        )
        is_due = options.score_every and at.step % options.score_every == 0 and not at.is_last
        if is_due and is_main_process():
            metrics |= score_during_training(self.ema.module, self.spec, self.data, self.runtime, options)
        return metrics

    def tensors(self) -> dict[str, Any]:
        return {
            "pair": self.runtime.unwrap(self.network).state_dict(),
            "ema": self.ema.module.state_dict(),
            "means": self.spec.means,
            "stds": self.spec.stds,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.runtime.unwrap(self.network).load_state_dict(saved["pair"])
        self.ema.module.load_state_dict(saved["ema"])
        self.spec = replace(self.spec, means=to_tuples(saved["means"]), stds=to_tuples(saved["stds"]))
        for pair in (self.runtime.unwrap(self.network), self.ema.module):
            pair.set_greys(self.spec)

    def name_series(self, number: int) -> str:
        world = self.runtime.world
        shares = [SliceOrder(self.options, number, rank, world).share(number) for rank in range(world)]
        return self.dataset.name_series([key for share in shares for key in share])

    def export(self, path: Path, step: int) -> None:
        """Write the moving average of the weights, with metadata of the training and its patients."""
        save_segmenter(
            path,
            self.ema.module,
            self.spec,
            script="train_seg.py",
            steps=step,
            options=plain_options(self.options),
            patients={part: sorted(set(self.data.part(part)["patient_id"])) for part in PARTS},
        )


def describe_pair(options: SegOptions, size: int) -> SegmenterSpec:
    """Return the spec that the options define; with an `--encoder` of this kit, A has its backbone.

    Raises:
        UserError: the encoder file cannot be read, or both sub-networks would have the same architecture.
    """
    first, second = options.backbones
    mean, std = default_greys(options.windows)
    if options.encoder and (about := find_encoder_file(options.encoder)):
        first = about.name
    if (first, options.decoders[0]) == (second, options.decoders[1]):
        raise UserError(
            f"both sub-networks are {options.decoders[0]} on {first}: they must differ to correct each other "
            "(see --backbones, --decoders, and --encoder, which names the first backbone)"
        )
    return SegmenterSpec(
        backbones=(first, second),
        decoders=options.decoders,
        decoder_width=options.decoder_width,
        windows=options.windows,
        slices=options.slices,
        size=size,
        means=(mean, mean),
        stds=(std, std),
    )


def _load_first_weights(pair: SegmenterPair, spec: SegmenterSpec, options: SegOptions) -> SegmenterSpec:
    """Load the first weights of both sub-networks; return the spec with the grey levels of their training."""
    nets = (pair.a, pair.b)
    loaded = [
        load_first_weights(net.encoder, source, options.windows, options.slices)
        for net, source in zip(nets, options.sources, strict=True)
    ]
    for name, backbone, first in zip("AB", spec.backbones, loaded, strict=True):
        say(f"first weights of {name} ({backbone}): {first}")
    spec = replace(spec, means=tuple(each.mean for each in loaded), stds=tuple(each.std for each in loaded))
    pair.set_greys(spec)
    return spec


def _open_folder(options: SegOptions, method: PairTraining, checkpoint: Path | None, step: int) -> None:
    """Print a description of the run, and write its first files before the first step."""
    series, runtime, output = method.data.series, method.runtime, options.output
    counts = ", ".join(f"{(series['part'] == part).sum()} {part}" for part in PARTS)
    say(f"series: {counts} ({series['patient_id'].nunique()} patients); {runtime.describe()}")
    if checkpoint:
        say(f"continuing {checkpoint} after step {step} of {options.steps}")
    else:
        results = (MODEL, "split.csv", "scores.csv", "sheets/*/*.png", "left_out")
        clear_training(output, results, keep=options.sources)
    left_out = set(method.data.part("left out")["patient_id"])
    seen = left_out & {patient for source in options.sources for patient in patients_seen_by(source)}
    if seen:
        warn(
            f"the encoder was pre-trained on {len(seen)} of the {len(left_out)} patients left out "
            "(images only, no labels: allowed, but their score may flatter)"
        )
    save_options(options, output / "config.yaml")
    write_table(series[COLUMNS], output / "split.csv")
