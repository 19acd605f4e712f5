"""What a pre-training step costs beyond its backbones: time and peak memory.

python benchmarks/bench_voco.py --json voco.json
python benchmarks/bench_voco.py --quick

Same tiles, same backbone, one run: the whole optimiser step (uint8 tiles in, changes of their appearance,
student, teacher, losses, monitors, clipping, AdamW, moving average) against the bare backbone (student
forward and backward, teacher forward without graph, channels-last, float tiles that are ready). The two take
turns; a time is the median. Peak memory is that of a new process. Two geometries:

    v2      2D-VoCo v2; on a CPU, 8 of its 32 slices. The limit of memory is without the weights and states
            that only the step has: they do not grow with the batch, and weigh more the fewer slices there are
    plus    the preset; on a CPU, 8 of its 32 volumes

Then objective and monitors of `plus` alone, at its full size on one thread: the shared products of a step
against cosines by broadcasting, each for itself. Memory is without the embeddings that both are given.

Last, forward and backward pass of a backbone with 5 x 5 kernels on one thread of the CPU: torch's gradient
of the weights of depthwise convolutions, and ours on small maps (src/nn/depthwise.py).
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import (
    BenchOptions,
    alternate,
    in_fresh_process,
    median_ratio,
    peak_bytes,
    read_preset,
    run_main,
)
from torch import nn
from voco_terms import build_broadcast_terms, build_terms, hold_embeddings

from src.core.log import format_table, say
from src.core.runtime import Runtime, keep_freed_memory, torch_seed
from src.nn.depthwise import DepthwiseConv2d
from src.nn.encoder import create_encoder
from src.nn.schedule import LoopSettings
from src.nn.training import TrainingLoop
from src.voco.appearance import draw_appearance
from src.voco.crops import CropGrid, overlap_labels
from src.voco.dataset import VolumeSample
from src.voco.model import build_network, make_teacher
from src.voco.options import VocoOptions
from src.voco.position import PositionPretraining

TIME_LIMIT, MEMORY_LIMIT = 1.15, 1.2
PLUS_LIMIT = 1.1
TERMS_LIMIT_S, TERMS_LIMIT_MB = 0.12, 80
MICRO_BATCH = 64
DEPTHWISE, DEPTHWISE_TILES = "tf_efficientnet_lite0", 128


@dataclass(frozen=True, kw_only=True)
class VocoBenchOptions(BenchOptions):
    slices: int | None = None
    """slices per crop; by default 32 on a GPU and 8 on a CPU, --quick 4"""
    repeats: int | None = None
    """timed runs of each row; by default 7, --quick 3"""


def main(options: VocoBenchOptions) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    slices = options.slices or (4 if options.quick else 32 if on_gpu else 8)
    repeats = options.repeats or (3 if options.quick else 7)
    has_bf16 = on_gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    terms, depthwise = compare_terms(repeats), compare_depthwise(repeats)
    plus = read_preset(VocoOptions, "voco/plus", "--data", "none")
    if not on_gpu:
        plus = replace(plus, batch=2 if options.quick else 8)
    plus_rows = measure(replace(plus, precision="auto" if on_gpu else "fp32"), repeats)
    say(f"\nplus: {plus.backbone}, {count_tiles(plus)} tiles of {plus.tile} px per step")
    say(format_table(plus_rows, digits=2))
    say(f"a whole step takes x time {plus_rows[1]['x time']:.2f} of {PLUS_LIMIT}")

    voco = VocoOptions(data=(Path("none"),), output=Path("none"), backbone="efficientnet_b0", slices=slices)
    say(f"\nv2: {voco.backbone}, {count_tiles(voco)} tiles of {voco.tile} px per step")
    rows = []
    for precision in ("fp32", "bf16") if has_bf16 else ("fp32",):
        measured = measure(replace(voco, precision=precision), repeats, MICRO_BATCH)
        say(format_table(measured, digits=2))
        rows += measured
    states, times, memories = states_bytes(voco), [], []
    for backbone, step in ((rows[at], rows[at + 1]) for at in range(0, len(rows), 3)):  # of each precision
        times.append(step["x time"])
        memories.append((step["GB"] - states / 1e9) / backbone["GB"])
    within = max(times) <= TIME_LIMIT and max(memories) <= MEMORY_LIMIT
    verdict = "within" if within else "beyond"
    say(
        f"a whole step is {verdict} its limits: x time {max(times):.2f} of {TIME_LIMIT}, x memory "
        f"{max(memories):.2f} of {MEMORY_LIMIT} without {states / 1e9:.2f} GB of head and optimiser"
    )
    within = within and plus_rows[1]["x time"] <= PLUS_LIMIT
    tiles = {"plus": count_tiles(plus), "v2": count_tiles(voco)}
    return {
        **{"tiles": tiles, "terms": terms, "depthwise": depthwise, "plus": plus_rows, "rows": rows},
        **{"states_bytes": states, "within_limits": within},
    }


def count_tiles(options: VocoOptions) -> int:
    """Images that a network encodes in a step."""
    return options.batch * options.crops * options.slices


def compare_terms(repeats: int) -> list[dict[str, Any]]:
    """Objective and monitors of `plus` at its full size on one thread of the CPU, both ways."""
    options = read_preset(VocoOptions, "voco/plus", "--data", "none")
    builders = {
        "broadcast": partial(build_broadcast_terms, options),
        "shared products": partial(build_terms, options),
    }
    with one_thread():
        given = peak_bytes(partial(hold_embeddings, options), runs=1)
        peaks = {name: peak_bytes(build, runs=2) - given for name, build in builders.items()}
        seconds = in_fresh_process(time_builders, builders, repeats)
    base = "broadcast"
    rows = [
        {
            **{"objective and monitors": name, "s": statistics.median(tries)},
            **{"x time": median_ratio(tries, seconds[base]), "MB": peaks[name] / 1e6},
            "x memory": peaks[name] / peaks[base],
        }
        for name, tries in seconds.items()
    ]
    shape = f"B = {options.batch}, R = {options.random_crops}, D = {options.projection}"
    say(f"\nobjective and monitors of plus, {shape}, one thread")
    say(format_table(rows, digits=3))
    say(f"limits: {TERMS_LIMIT_S} s and {TERMS_LIMIT_MB} MB")
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, in new processes as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare_depthwise(repeats: int) -> list[dict[str, Any]]:
    """Passes of a backbone on the CPU with the gradient of depthwise weights of torch, and with ours."""
    kinds = {"of torch": nn.Conv2d, "of the kit": DepthwiseConv2d}
    builders = {name: partial(build_depthwise, kind) for name, kind in kinds.items()}
    with one_thread():
        seconds = in_fresh_process(time_builders, builders, repeats)
    rows = [
        {
            **{"gradient of depthwise weights": name, "s": statistics.median(tries)},
            "x time": median_ratio(tries, seconds["of torch"]),
        }
        for name, tries in seconds.items()
    ]
    say(f"\n{DEPTHWISE}, {DEPTHWISE_TILES} tiles of 64 px, one thread")
    say(format_table(rows, digits=2))
    return rows


def build_depthwise(kind: type[nn.Conv2d]) -> Callable[[], Any]:
    """Forward and backward pass of a backbone whose depthwise convolutions are of `kind`."""
    keep_freed_memory()
    with torch_seed(0):
        network = create_encoder(DEPTHWISE, 1).to(memory_format=torch.channels_last).train()
        images = torch.rand(DEPTHWISE_TILES, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, DepthwiseConv2d):
            module.__class__ = kind
    return lambda: network(images).square().mean().backward()


def states_bytes(options: VocoOptions) -> int:
    """Memory of a step beyond the backbone's for any batch: two heads, a gradient, AdamW's two averages."""
    network = build_network(options)
    head, trained = (sum(each.nbytes for each in part.parameters()) for part in (network.head, network))
    return 3 * head + 2 * trained


def measure(options: VocoOptions, repeats: int, micro_batch: int = 0) -> list[dict[str, Any]]:
    """The rows of one precision; those of a step in micro-batches too, if their size is given."""
    builders = {"backbone": partial(build_backbone, options), "step": partial(build_step, options)}
    if micro_batch:
        in_parts = replace(options, micro_batch=micro_batch)
        builders[f"step, micro-batch {micro_batch}"] = partial(build_step, in_parts)
    peaks = {name: peak_bytes(build, runs=2) for name, build in builders.items()}  # AdamW's state comes late
    seconds = in_fresh_process(time_builders, builders, repeats)  # a process has one precision
    return [{"precision": options.precision, **row} for row in compare(seconds, peaks)]


def time_builders(
    builders: dict[str, Callable[[], Callable[[], Any]]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of what the builders build, all in this process."""
    return alternate({name: build() for name, build in builders.items()}, repeats)


def build_step(options: VocoOptions) -> Callable[[], Any]:
    """The whole optimiser step, as `train_voco.py` takes it, on one batch of noise."""
    runtime = Runtime.create(options.precision)
    ids = [str(number) for number in range(options.batch)]
    table = pd.DataFrame({"set": 0, "patient_id": ids, "series_id": ids})
    method = PositionPretraining(replace(options, first_weights="none"), NoiseVolumes(table), runtime)
    settings = LoopSettings(10**6, 0, options.lr, options.clip_norm, options.seed, log_every=1, save_every=1)
    loop = TrainingLoop(method, settings, runtime, Path(options.output), {})
    batch = draw_batch(options)
    return lambda: loop.train_on(batch, loop.step)


class NoiseVolumes:
    """In place of a `VocoDataset`: as many series as a batch has. No sample is read."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.index = SimpleNamespace(table=lambda: table, sets=((len(table), 1),))

    def __len__(self) -> int:
        return len(self.index.table())


def build_backbone(options: VocoOptions) -> Callable[[], Any]:
    """The backbone alone on the same tiles: student forward and backward, teacher forward without graph."""
    runtime = Runtime.create(options.precision)
    with torch_seed(options.seed):
        network = build_network(options).train()
    student = network.encoder.to(runtime.device)
    teacher = make_teacher(network, shared_backbone=False).encoder.to(runtime.device)
    tiles = draw_batch(options).tiles.flatten(0, 2).permute(0, 3, 1, 2).to(runtime.device)
    images = tiles.float().contiguous(memory_format=torch.channels_last)  # (B*K*T, C, h, w)

    def forward_and_backward() -> None:
        student.zero_grad()
        with runtime.autocast(), torch.no_grad():
            teacher(images)
        with runtime.autocast():
            features = student(images)
        features.float().square().mean().backward()

    return forward_and_backward


def draw_batch(options: VocoOptions) -> VolumeSample:
    """Volumes of noise with true labels, in the memory from which a loader hands them on."""
    rng = np.random.default_rng(0)
    grid = CropGrid(
        (options.depth, options.canvas, options.canvas), (options.grid_z, options.grid, options.grid)
    )
    bases = grid.base_starts()
    labels = [
        overlap_labels(grid.random_starts(rng, options.random_crops), bases, grid.crop)
        for _ in range(options.batch)
    ]
    crops = options.random_crops + len(bases)
    changes = [draw_appearance(crops, options.appearance, options.tile, rng) for _ in range(options.batch)]
    shape = (options.batch, crops, options.slices, options.tile, options.tile, options.channels)
    sample = VolumeSample(
        torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
        torch.from_numpy(np.stack(labels)),
        torch.arange(options.batch),
        torch.from_numpy(np.stack(changes)),
    )
    return VolumeSample(*(part.pin_memory() for part in sample)) if torch.cuda.is_available() else sample


def compare(seconds: dict[str, list[float]], peaks: dict[str, int]) -> list[dict[str, Any]]:
    """One row per work: medians, and each over that of the backbone."""
    return [
        {
            "row": name,
            "s": statistics.median(tries),
            "x time": median_ratio(tries, seconds["backbone"]),
            "GB": peaks[name] / 1e9,
            "x memory": peaks[name] / peaks["backbone"],
        }
        for name, tries in seconds.items()
    ]


if __name__ == "__main__":
    run_main(main, VocoBenchOptions)
