"""What 2D-VoCo saves over VoCo in 3D: operations, memory and seconds of a training step per volume.

python benchmarks/cost_2d_vs_3d.py --json cost.json --plot cost.png
python benchmarks/cost_2d_vs_3d.py --quick

A step is the student's forward and backward and the teacher's forward, in fp32, without the optimiser. The
first table has the geometry of the presets `v2` and `3d`. Operations and memory are counted, on tensors
without data; seconds and memory are measured as well: on a GPU with all crops of a volume, on a CPU with a
few, the seconds scaled to the volume. In the second table and the plot the canvas grows, cut into 3 x 3 + 2
crops at full resolution: a 3D backbone must take every slice, a 2D one may take 32 of them, as v2 does.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from counting import META, Count, count_step, voco_step
from harness import BenchOptions, alternate, peak_bytes, read_preset, run_main
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.core.files import atomic_path
from src.core.log import format_table, say
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


def compare_step(name: str, options: VocoOptions, quick: bool) -> dict[str, Any]:
    """A row of the first table: the step of a whole volume counted, and a part of it measured."""
    crops = options.crops
    part = crops if torch.cuda.is_available() else 1 if quick else 2
    whole, counted_part = count_crops(options, crops), count_crops(options, part)
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
                counted = count_crops(options, options.crops)
                yield {
                    "grows": axis,
                    "depth": depth,
                    "canvas": canvas,
                    "method": name,
                    "GFLOP": counted.flops / 1e9,
                    "GB": counted.peak_bytes / 1e9,
                }


def count_crops(options: VocoOptions, crops: int) -> Count:
    """The step of one volume with `crops` crops, counted and not run."""
    return count_step(voco_step(options, META, 1, crops))


def build_step(options: VocoOptions, crops: int) -> Callable[[], None]:
    """The step of one volume with `crops` crops on the device at hand."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return voco_step(options, device, 1, crops).run


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


if __name__ == "__main__":
    run_main(main, CostOptions)
