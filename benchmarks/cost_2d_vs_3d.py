"""What 2D-VoCo saves over VoCo in 3D: operations, memory and seconds of a training step, a volume.

python benchmarks/cost_2d_vs_3d.py --json cost.json --plot cost.png
python benchmarks/cost_2d_vs_3d.py --quick

A step is the student's forward and backward and the teacher's forward, in fp32, without the optimiser. The
first table has the geometry of the presets `v2` and `3d`. Operations and memory are counted, on tensors
without data, so that nothing need fit; seconds and memory are measured as well: on a GPU with all crops of a
volume, on a CPU with a few, the seconds scaled to the volume. The second table and the plot let the canvas
grow, cut into 3 x 3 + 2 crops at full resolution: a 3D backbone must take every slice, a 2D one may take 32
of them, as v2 does.
"""

import statistics
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import BenchOptions, alternate, peak_bytes, read_preset, run_main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from src.core.files import atomic_path
from src.core.log import format_table, say
from src.core.runtime import torch_seed
from src.voco.model import build_network, embed_by_both, make_teacher
from src.voco.options import VocoOptions

PUBLISHED = (
    ("v2", "efficientnet_b0"),
    ("v2", "efficientnetv2_rw_s"),
    ("3d", "resnet10_3d"),
    ("3d", "swin_unetr_b"),
)
GROWING = (
    ("2D, efficientnet_b0, 32 slices", "efficientnet_b0", 32),
    ("2D, efficientnetv2_rw_s, 32 slices", "efficientnetv2_rw_s", 32),
    ("2D, efficientnetv2_rw_s, every slice", "efficientnetv2_rw_s", None),
    ("3D, resnet10_3d (light)", "resnet10_3d", None),
    ("3D, swin_unetr_b", "swin_unetr_b", None),
)
"""Name, backbone, slices that it takes of each crop (None is all)."""

DEPTHS, CANVASES = (32, 64, 96, 128), (96, 192, 288, 384)
MIDDLE_DEPTH, MIDDLE_CANVAS = 64, 192
GROWING_GRID = 3
QUICK_FLOPS = 100e9


@dataclass(frozen=True, kw_only=True)
class CostOptions(BenchOptions):
    plot: Path | None = None
    """PNG file for the plot"""


class Count(NamedTuple):
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition being two."""
    peak_bytes: int
    """Of the tensors that live at one time, those that were there before among them."""


def main(options: CostOptions) -> dict[str, Any]:
    published = [
        compare_step(name, load_preset(name, backbone), options.quick) for name, backbone in PUBLISHED
    ]
    say(f"\na step of one volume, at the published geometry\n{format_table(published, digits=2)}")
    growth = list(grow(options.quick))
    say(f"\na step of one volume, counted\n{format_table(growth, digits=2)}")
    if options.plot:
        with atomic_path(options.plot) as temporary:
            draw_growth(growth).savefig(temporary, dpi=110, format="png")
    return {"published": published, "growth": growth}


def load_preset(name: str, backbone: str) -> VocoOptions:
    """A preset of `configs/voco` with another backbone."""
    return read_preset(VocoOptions, f"voco/{name}", "--data", "none", "--backbone", backbone)


def crops_of(options: VocoOptions) -> int:
    """Crops of a volume, random and base."""
    return options.random_crops + options.grid_z * options.grid**2


def compare_step(name: str, options: VocoOptions, quick: bool) -> dict[str, Any]:
    """A row of the first table: the step of a whole volume counted, and a part of it measured."""
    crops = crops_of(options)
    part = crops if torch.cuda.is_available() else 1 if quick else 2
    whole, counted_part = count_step(options, crops), count_step(options, part)
    row = {
        "step": name,
        "backbone": options.backbone,
        "crops": crops,
        "crop": f"{options.slices}x{options.tile}x{options.tile}",
        "GFLOP": whole.flops / 1e9,
        "GB": whole.peak_bytes / 1e9,
    }
    if quick and counted_part.flops > QUICK_FLOPS:
        return row
    measured_bytes = peak_bytes(build_step, options, part)
    seconds = alternate({name: build_step(options, part)}, 1 if quick else 3)[name]
    scaled = statistics.median(seconds) * crops / part
    return row | {
        "s": scaled,
        "GFLOP/s": whole.flops / 1e9 / scaled,
        "measured crops": part,
        "their GB": measured_bytes / 1e9,
        "counted": counted_part.peak_bytes / 1e9,
    }


def grow(quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the second table: one of the two sizes of the canvas grows, the other stays in the middle."""
    for axis, values in (("depth", DEPTHS), ("canvas", CANVASES)):
        for value in (values[0], values[-1]) if quick else values:
            depth, canvas = (value, MIDDLE_CANVAS) if axis == "depth" else (MIDDLE_DEPTH, value)
            for name, backbone, slices in GROWING:
                options = replace(
                    load_preset("v2", backbone),
                    canvas=canvas,
                    depth=depth,
                    grid=GROWING_GRID,
                    tile=canvas // GROWING_GRID,
                    slices=slices or depth,
                )
                counted = count_step(options, crops_of(options))
                yield {
                    "grows": axis,
                    "depth": depth,
                    "canvas": canvas,
                    "method": name,
                    "GFLOP": counted.flops / 1e9,
                    "GB": counted.peak_bytes / 1e9,
                }


def count_step(options: VocoOptions, crops: int) -> Count:
    """The step of `crops` crops, counted and not run."""
    step, networks = _prepare_step(options, crops, torch.device("meta"))
    return count(step, tensors_of(networks))


def tensors_of(networks: Sequence[torch.nn.Module]) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def build_step(options: VocoOptions, crops: int) -> Callable[[], None]:
    """The step of `crops` crops on the device at hand."""
    return _prepare_step(options, crops, torch.device("cuda" if torch.cuda.is_available() else "cpu"))[0]


def _prepare_step(
    options: VocoOptions, crops: int, device: torch.device
) -> tuple[Callable[[], None], list[torch.nn.Module]]:
    with torch_seed(0):
        student = build_network(options).train()
    teacher = make_teacher(student, options.shared_backbone)
    shape = (1, crops, options.slices, options.tile, options.tile, len(options.windows))
    tiles = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks = [student.to(device), teacher.to(device)]
    return partial(_take_step, *networks, tiles.to(device)), networks


def _take_step(student: torch.nn.Module, teacher: torch.nn.Module, tiles: torch.Tensor) -> None:
    student.zero_grad()
    embeddings, _ = embed_by_both(student, teacher, tiles)
    embeddings.square().mean().backward()


def draw_growth(rows: list[dict[str, Any]]) -> Figure:
    """Operations and memory against depth and side of the canvas, both on logarithmic axes."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes_of = figure.subplots(2, 2, sharex="col", sharey="row")
    labels = {
        "depth": f"slices of a canvas of {MIDDLE_CANVAS} x {MIDDLE_CANVAS} pixels",
        "canvas": f"side of a canvas of {MIDDLE_DEPTH} slices, pixels",
    }
    for column, (axis, label) in enumerate(labels.items()):
        for row, (figure_name, unit) in enumerate(
            (("GFLOP", "operations of a step, GFLOP"), ("GB", "peak memory of a step, GB"))
        ):
            axes = axes_of[row][column]
            for name, _, slices in GROWING:
                points = [point for point in rows if point["grows"] == axis and point["method"] == name]
                sizes, values = ([point[key] for point in points] for key in (axis, figure_name))
                axes.plot(
                    sizes,
                    values,
                    marker="o" if name.startswith("2D") else "s",
                    linestyle="--" if slices else "-",
                    label=name,
                )
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(sizes, labels=[str(size) for size in sizes], minor=False)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            if row == 1:
                axes.set_xlabel(label)
            if column == 0:
                axes.set_ylabel(unit)
    figure.legend(*axes_of[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle("Student forward and backward, teacher forward, of one volume: 3 x 3 + 2 crops (counted)")
    return figure


def count(work: Callable[[], Any], existing: list[Tensor]) -> Count:
    """Count what `work`, on tensors of torch's meta device, would compute and hold.

    It runs twice, for torch's counter of operations keeps tensors alive that nothing else needs. What a
    kernel uses inside itself is not seen, nor are the blocks that an allocator keeps for later.

    Args:
        existing: tensors that live before the work begins, as parameters do.
    """
    live = LiveBytes(existing)
    with live:
        work()
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    flops = FlopCounterMode(display=False, custom_mapping=formulas)
    with flops:
        work()
    return Count(flops.get_total_flops(), live.peak)


def convolution_backward_flops(
    grad_output: tuple[int, ...],
    inputs: tuple[int, ...],
    weight: tuple[int, ...],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """A gradient of a convolution costs what the convolution does, that of its input as that of its weight.

    torch counts the weight's as if every group saw all channels: a depthwise convolution of a thousand
    channels would count a thousand times too much.

    Args:
        grad_output, inputs, weight: shapes.
        rest: what else aten.convolution_backward takes; transposed, and which gradients are asked for.
    """
    is_transposed, wanted = rest[4], rest[7]
    places = prod((inputs if is_transposed else grad_output)[2:])
    return 2 * inputs[0] * places * prod(weight) * (wanted[0] + wanted[1])


class LiveBytes(TorchDispatchMode):
    """The bytes of all storages that live at a time: inside this mode, or among those given to it."""

    def __init__(self, existing: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()
        for tensor in existing:
            self._add(tensor)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        results = function(*arguments, **(keywords or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result)
        return results

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # views share theirs
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


if __name__ == "__main__":
    run_main(main, CostOptions)
