"""What a segmentation run carries from step to step, and its checkpoint."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3

from src.core.checkpoint import clear_run, read_own_checkpoint, save_checkpoint
from src.core.config import plain_options
from src.core.errors import UserError
from src.core.files import discard
from src.core.runtime import Runtime, torch_seed
from src.nn.encoder import default_greys, find_encoder_file
from src.nn.first_weights import load_first_weights
from src.seg.model import SegmenterPair, SegmenterSpec, check_pair
from src.seg.options import SegOptions
from src.seg.split import SegData

FREE_TO_CHANGE = (
    "data",
    "labelled",
    "output",
    "resume",
    "workers",
    "precision",
    *("log_every", "save_every", "score_every", "organs"),
)
"""Options that a resumed run may change: data are known by their series and parts, not by path."""


@dataclass
class TrainingState:
    """What an optimiser step changes; `pair` and `optimizer` may be wrapped by `Runtime.prepare`."""

    pair: torch.nn.Module
    ema: ModelEmaV3
    """the average of the weights, which is scored and handed on"""
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    """Time that the steps took so far, those before a resumption included."""


def describe_pair(options: SegOptions, size: int) -> SegmenterSpec:
    """The pair that the options ask for; with `--encoder` of this kit, A is its backbone.

    Raises:
        UserError: the encoder file cannot be read, or both sub-networks would be of one kind.
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


def build_state(
    options: SegOptions, spec: SegmenterSpec, runtime: Runtime
) -> tuple[TrainingState, SegmenterSpec, str]:
    """Pair, average and optimiser before the first step; the initial weights follow from the seed.

    Returns:
        The state, the spec with the grey levels that the weights of `--encoder` know, and what was loaded
        from there (empty without one).

    Raises:
        UserError: a backbone or decoder that cannot be built, or first weights that do not fit.
    """
    with torch_seed(options.seed):
        pair = SegmenterPair(spec, options.pretrained, options.embedding if options.contrast else 0)
    unlabelled = options.unlabelled_batch if options.uses_unlabelled else 0
    check_pair(pair, spec, (options.batch + unlabelled) // runtime.world)
    report = ""
    if options.encoder:
        first = load_first_weights(pair.a.net.encoder.model, options.encoder, options.windows, options.slices)
        spec = replace(spec, means=(first.mean, spec.means[1]), stds=(first.std, spec.stds[1]))
        pair.a.set_greys(first.mean, first.std)
        report = str(first.report)
    pair = runtime.share_batch_statistics(pair).to(memory_format=torch.channels_last)
    pair.train()
    optimizer = torch.optim.AdamW(
        pair.parameters(),
        lr=options.lr,
        weight_decay=options.weight_decay,
        fused=runtime.device.type == "cpu" or None,
    )
    ema = ModelEmaV3(pair, decay=options.ema_decay, use_warmup=True)
    return TrainingState(pair, ema, optimizer), spec, report


def run_identity(options: SegOptions, data: SegData) -> dict[str, Any]:
    """What must be equal for a run to continue a checkpoint: options, series in order, and their parts."""
    columns = data.series[["set", "patient_id", "series_id", "part"]].astype(str)
    ids = "\n".join(columns.agg("/".join, axis=1))
    return {"options": plain_options(options), "series": hashlib.sha256(ids.encode()).hexdigest()}


def clear_folder(options: SegOptions) -> None:
    """Delete what an earlier run left in the folder of this one."""
    patterns = ("segmenter.safetensors", "split.csv", "scores.csv", "sheets/*/*.png")
    clear_run(Path(options.output), patterns, keep=options.encoder)
    discard(Path(options.output) / "left_out")


def save_state(path: Path, state: TrainingState, runtime: Runtime, identity: dict[str, Any]) -> None:
    """Write all that resuming needs; draws follow from (seed, number) and (seed, step), so no generator's."""
    content = {
        "step": state.step,
        "seconds": state.seconds,
        "pair": runtime.unwrap(state.pair).state_dict(),
        "ema": state.ema.module.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": runtime.scaler_state(),
    }
    save_checkpoint(path, content | identity)


def restore_state(path: Path, state: TrainingState, runtime: Runtime, identity: dict[str, Any]) -> None:
    """Continue from a checkpoint, in place.

    Raises:
        UserError: it cannot be read, is not one of segmentation, or belongs to other options or series.
    """
    keys = {"step", "seconds", "pair", "ema", "optimizer", "scaler"}
    saved = read_own_checkpoint(path, "train_seg.py", keys, identity, FREE_TO_CHANGE)
    runtime.unwrap(state.pair).load_state_dict(saved["pair"])
    state.ema.module.load_state_dict(saved["ema"])
    state.optimizer.load_state_dict(saved["optimizer"])
    runtime.load_scaler(saved["scaler"])
    state.step, state.seconds = saved["step"], saved["seconds"]
