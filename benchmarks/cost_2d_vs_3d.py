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
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from counting import Count, count
from ct_files import machine
from measuring import alternate, device_name, peak_bytes

from src.core.config import ROOT, parse_options
from src.core.errors import exit_on_user_error
from src.core.files import atomic_path, write_json
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


@dataclass(frozen=True)
class CostOptions:
    quick: bool = False
    """ends of the ranges only, one crop measured once, nothing slow measured"""
    crops: int | None = None
    """crops to measure with; by default 2 on a CPU and all on a GPU: lower it where memory runs out"""
    json: Path | None = None
    """file for the figures"""
    plot: Path | None = None
    """PNG file for the plot"""

    def __post_init__(self) -> None:
        if self.crops is not None and self.crops < 1:
            raise ValueError(f"option --crops must be at least 1, got {self.crops}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(CostOptions, argv, prog="cost_2d_vs_3d.py", description=__doc__)
    say(f"{device_name()}; {machine()}")
    published = []
    for name, backbone in PUBLISHED:
        published.append(compare_step(name, load_preset(name, backbone), options))
    say(f"\na step, a volume, at the published geometry\n{format_table(published, digits=2)}")
    growth = list(grow(options.quick))
    say(f"\na step, a volume, counted\n{format_table(growth, digits=2)}")
    if options.plot:
        with atomic_path(options.plot) as temporary:
            draw_growth(growth).savefig(temporary, dpi=110, format="png")
    if options.json:
        figures = {"machine": machine(), "device": device_name()}
        write_json(figures | {"published": published, "growth": growth}, options.json)


def load_preset(name: str, backbone: str) -> VocoOptions:
    """A preset of `configs/voco` with another backbone."""
    preset = str(ROOT / "configs" / "voco" / f"{name}.yaml")
    arguments = ["--config", preset, "--data", "none", "--output", "none", "--backbone", backbone]
    return parse_options(VocoOptions, arguments, prog="cost_2d_vs_3d.py", description="")


def crops_of(options: VocoOptions) -> int:
    """Crops of a volume, random and base."""
    return options.random_crops + options.grid_z * options.grid**2


def compare_step(name: str, options: VocoOptions, bench: CostOptions) -> dict[str, Any]:
    """A row of the first table: the step of a whole volume counted, and a part of it measured."""
    crops = crops_of(options)
    part = min(crops, bench.crops or (crops if torch.cuda.is_available() else 1 if bench.quick else 2))
    whole, counted_part = count_step(options, crops), count_step(options, part)
    row = {
        "step": name,
        "backbone": options.backbone,
        "crops": crops,
        "a crop": f"{options.slices}x{options.tile}x{options.tile}",
        "GFLOP": whole.flops / 1e9,
        "GB": whole.peak_bytes / 1e9,
    }
    if bench.quick and counted_part.flops > QUICK_FLOPS:
        return row
    measured_bytes = peak_bytes(build_step, options, part)
    seconds = alternate({name: build_step(options, part)}, 1 if bench.quick else 3)[name]
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
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return count(step, tensors)


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


if __name__ == "__main__":
    with exit_on_user_error():
        main()
