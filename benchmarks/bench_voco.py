"""What a pre-training step costs beyond its backbone: time and peak memory.

python benchmarks/bench_voco.py --json voco.json
python benchmarks/bench_voco.py --quick

Same tiles, same backbone, one run: the whole optimiser step (uint8 tiles in, student, teacher, losses,
monitors, clipping, AdamW, moving average) against the bare backbone (student forward and backward, teacher
forward without graph, channels-last, float tiles that are ready). The two take turns; a time is the median.
Peak memory is that of a process of its own. The geometry is that of 2D-VoCo v2; on a CPU, 8 of its 32 slices.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ct_files import machine
from measuring import alternate, device_name, peak_bytes

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say
from src.core.runtime import Runtime, torch_seed
from src.voco.crops import CropGrid, overlap_labels
from src.voco.dataset import VolumeSample
from src.voco.model import build_network, make_teacher
from src.voco.monitors import Monitors
from src.voco.objectives import build_objective
from src.voco.options import VocoOptions
from src.voco.state import build_state
from src.voco.step import take_step

TIME_LIMIT, MEMORY_LIMIT = 1.15, 1.2
MICRO_BATCH = 64


@dataclass(frozen=True)
class BenchOptions:
    quick: bool = False
    """fewer tiles and repeats"""
    slices: int | None = None
    """slices a crop; by default 32 on a GPU and 8 on a CPU, --quick 4"""
    repeats: int | None = None
    """timed runs of each row; by default 9, --quick 3"""
    json: Path | None = None
    """file for the figures"""


def main(argv: list[str] | None = None) -> None:
    options = parse_options(BenchOptions, argv, prog="bench_voco.py", description=__doc__)
    on_gpu = torch.cuda.is_available()
    slices = options.slices or (4 if options.quick else 32 if on_gpu else 8)
    repeats = options.repeats or (3 if options.quick else 9)
    fp32 = VocoOptions(
        data=("none",), output="none", backbone="efficientnet_b0", slices=slices, precision="fp32"
    )
    micro = VocoOptions(**{**fp32.__dict__, "micro_batch": MICRO_BATCH})
    builders = {
        "backbone, fp32": partial(build_backbone, fp32),
        "step, fp32": partial(build_step, fp32),
        f"step, fp32, micro-batch {MICRO_BATCH}": partial(build_step, micro),
    }
    if on_gpu or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        bf16 = VocoOptions(**{**fp32.__dict__, "precision": "bf16"})
        builders |= {"backbone, bf16": partial(build_backbone, bf16), "step, bf16": partial(build_step, bf16)}
    tiles = fp32.batch * (fp32.random_crops + fp32.grid**2) * slices
    say(f"{fp32.backbone}, {tiles} tiles of {fp32.tile} px a step; {device_name()}; {machine()}")
    peaks = {name: peak_bytes(build) for name, build in builders.items()}
    seconds = alternate({name: build() for name, build in builders.items()}, repeats)
    rows = compare(seconds, peaks)
    say(format_table(rows, digits=2))
    step = next(row for row in rows if row["row"] == "step, fp32")
    say(f"limits of a whole step: x time {TIME_LIMIT}, x memory {MEMORY_LIMIT}")
    if options.json:
        figures = {"machine": machine(), "device": device_name(), "tiles": tiles, "repeats": repeats}
        within = step["x time"] <= TIME_LIMIT and step["x memory"] <= MEMORY_LIMIT
        write_json(figures | {"rows": rows, "step": step, "within_limits": within}, options.json)


def build_step(options: VocoOptions) -> Callable[[], Any]:
    """The whole optimiser step, as `train_voco.py` takes it, on one batch of noise."""
    runtime = Runtime.create(options.precision)
    state = build_state(options, runtime)
    state.teacher.to(runtime.device)
    state.student, state.optimizer = runtime.prepare(state.student, state.optimizer)
    objective, monitors = build_objective(options), Monitors()
    batch, patient_of = draw_batch(options), torch.arange(options.batch)

    def step() -> None:
        with torch_seed(options.seed, state.step, runtime.rank):
            take_step(state, batch, patient_of, objective, monitors, options, runtime)
        state.step += 1

    return step


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
    shape = (options.batch, crops, options.slices, options.tile, options.tile, len(options.windows))
    sample = VolumeSample(
        torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8)),
        torch.from_numpy(np.stack(labels)),
        torch.arange(options.batch),
    )
    return VolumeSample(*(part.pin_memory() for part in sample)) if torch.cuda.is_available() else sample


def compare(seconds: dict[str, list[float]], peaks: dict[str, int]) -> list[dict[str, Any]]:
    """A row a work: medians, and each over that of the backbone in the same precision.

    The ratio of times is the median of the ratios of neighbours in time, so that a machine that slows down
    halfway does not decide it.
    """
    rows = []
    for name, tries in seconds.items():
        backbone = "backbone, " + name.split(", ")[1]
        ratios = [own / other for own, other in zip(tries, seconds[backbone], strict=True)]
        rows.append(
            {
                "row": name,
                "s": statistics.median(tries),
                "x time": statistics.median(ratios),
                "GB": peaks[name] / 1e9,
                "x memory": peaks[name] / peaks[backbone],
            }
        )
    return rows


if __name__ == "__main__":
    with exit_on_user_error():
        main()
