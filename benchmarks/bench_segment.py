"""What masks for whole series cost beyond the forward passes of the pair: time, and memory by length.

python benchmarks/bench_segment.py --json segment.json
python benchmarks/bench_segment.py --quick

Slices of one phantom patient, prepared at 256 px in three windows, make series of equal length. Side by side,
in turn, torch on one thread in both:

    forward   the pair on batches that lie in memory: uint8 slices in, label maps out
    whole     what segment.py does with them: starting the process that reads, decoding, the same batches,
              naming the kidneys, erasing specks, measuring, writing masks and tables
    read      decoding alone, which the worker processes share
    write     what the one thread that follows the model does: cleaning, measuring and writing alone

A fast GPU waits for the slower of the last two. A ratio is the median over the rounds. Weights are random,
and masks of noise would have thousands of pieces a slice; so the pair's answer is drawn to ellipses of the
size of organs, in all. Peak memory is that of a process of its own, which reads its slices itself, for a
short and for a long series.
"""

import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench_voco_data import prepare_phantom
from ct_files import machine
from measuring import alternate, device_name, peak_bytes

from src.core.config import parse_options
from src.core.errors import exit_on_user_error
from src.core.files import write_json
from src.core.log import format_table, say
from src.core.runtime import Runtime, torch_seed
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset, image_folder, slice_name
from src.nn.encoder import default_greys
from src.nn.loading import StackLoader
from src.seg.mask_writer import MaskWriter, segment_series
from src.seg.model import CLASSES, SegmenterPair, SegmenterSpec, predict_masks
from src.seg.predict import SliceStream, with_neighbours

TIME_LIMIT = 1.2
WINDOWS, SLICES, BATCH = ("soft", "organ", "wide"), 3, 16
SLICE_MM = 2.5


@dataclass(frozen=True)
class BenchOptions:
    quick: bool = False
    """fewer slices and rounds: to see that it works, not for figures"""
    backbones: tuple[str, str] = ("test_efficientnet", "test_resnet")
    """timm backbones of the pair; the defaults suit a CPU"""
    decoders: tuple[str, str] = ("unet", "deeplabv3plus")
    """segmentation_models_pytorch decoders of the pair"""
    workers: int = 1
    """processes that read slices beside the forward passes"""
    repeats: int | None = None
    """timed rounds; by default 5, --quick 3"""
    json: Path | None = None
    """file for the figures"""


class OrganPair(SegmenterPair):
    """A pair whose answer is drawn to the same organs in every slice."""

    def __init__(self, spec: SegmenterSpec) -> None:
        super().__init__(spec)
        organs = torch.nn.functional.one_hot(torch.from_numpy(draw_organs(spec.size)).long(), CLASSES)
        self.register_buffer("organs", 2.0 * organs.permute(2, 0, 1))  # (CLASSES, H, W)

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return super().probabilities(images) + self.organs


def main(argv: list[str] | None = None) -> None:
    options = parse_options(BenchOptions, argv, prog="bench_segment.py", description=__doc__)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    say(f"{' and '.join(map('+'.join, zip(options.backbones, options.decoders, strict=True)))}")
    say(f"{device_name()}; {machine()}; load {load:.1f}" + (": other work slows it" if load > 0.5 else ""))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        phantom, mean_kb = prepare_phantom(folder, options.quick)
        times = compare_times(options, phantom, folder)
        memory = compare_memory(options, phantom, folder)
    if options.json:
        about = {"machine": machine(), "device": device_name(), "load": load, "quick": options.quick}
        pair = {"backbones": options.backbones, "decoders": options.decoders, "workers": options.workers}
        write_json(about | pair | {"mean_slice_kb": mean_kb, **times, "memory": memory}, options.json)


def compare_times(options: BenchOptions, phantom: Path, folder: Path) -> dict[str, Any]:
    """Seconds a slice of both ways, and their ratio."""
    series, slices = (2, 24) if options.quick else (4, 60)
    data = write_set(phantom, folder / "timed", series, slices)
    works = {
        "forward": build_forward(options, data),
        "whole": build_whole(options, data, folder / "masks", options.workers),
        "read": build_read(data),
        "write": build_write(options, data, folder / "written"),
    }
    seconds = alternate(works, options.repeats or (3 if options.quick else 5))
    ratio = statistics.median(
        whole / forward for whole, forward in zip(seconds["whole"], seconds["forward"], strict=True)
    )
    medians = {name: statistics.median(tries) / (series * slices) for name, tries in seconds.items()}
    rows = [{"": name, "ms a slice": 1e3 * value} for name, value in medians.items()]
    say(f"\n{series} series of {slices} slices, {len(seconds['whole'])} rounds\n{format_table(rows, 1)}")
    verdict = "within" if ratio <= TIME_LIMIT else "beyond"
    say(f"whole / forward {ratio:.3f}, {verdict} the limit of {TIME_LIMIT}")
    return {
        "slices": series * slices,
        "rounds": len(seconds["whole"]),
        "forward_s_per_slice": medians["forward"],
        "whole_s_per_slice": medians["whole"],
        "read_s_per_slice": medians["read"],
        "write_s_per_slice": medians["write"],
        "whole_over_forward": ratio,
        "time_limit": TIME_LIMIT,
        "within_time_limit": ratio <= TIME_LIMIT,
    }


def compare_memory(options: BenchOptions, phantom: Path, folder: Path) -> dict[str, Any]:
    """Peak bytes for two lengths of a series, and what a slice more adds."""
    lengths = (48, 144) if options.quick else (48, 480)
    peaks = []
    for slices in lengths:
        data = write_set(phantom, folder / f"{slices}", 1, slices)
        peaks.append(peak_bytes(build_whole, options, data, folder / f"masks_{slices}", 0))
    added = (peaks[1] - peaks[0]) / (lengths[1] - lengths[0])
    mask, probabilities = data.size**2, 4 * CLASSES * data.size**2
    rows = [{"slices": slices, "peak MB": peak / 1e6} for slices, peak in zip(lengths, peaks, strict=True)]
    say(f"\n{format_table(rows, 1)}")
    say(
        f"{added / 1e3:.1f} KB for each slice more; its mask kept would take {mask / 1e3:.0f} KB, "
        f"its probabilities {probabilities / 1e3:.0f} KB"
    )
    return {
        "slices": lengths,
        "peak_bytes": peaks,
        "added_bytes_per_slice": added,
        "mask_bytes_per_slice": mask,
        "probability_bytes_per_slice": probabilities,
        "is_flat": added < mask,
    }


def build_forward(options: BenchOptions, dataset: PreparedDataset) -> Callable[[], Any]:
    """The pair on the batches of all series, already on the device."""
    pair, spec, runtime = build_pair(options, dataset.size)
    stream = SliceStream(dataset, dataset.series, dataset.channels(WINDOWS), spec.slices, BATCH)
    batches = [with_neighbours(part, runtime.device) for part in StackLoader(stream, 0, batch_size=None)]

    def forward() -> None:
        for images in batches:
            with runtime.autocast():
                predict_masks(pair, images).cpu()

    return forward


def build_whole(
    options: BenchOptions, dataset: PreparedDataset, output: Path, workers: int
) -> Callable[[], Any]:
    """Masks and tables of all series, in a new folder each time."""
    pair, spec, runtime = build_pair(options, dataset.size)
    numbers = count()

    def whole() -> None:
        folder = output / str(next(numbers))
        outcomes = segment_series(
            pair, spec, runtime, dataset, dataset.series, folder, chunk=BATCH, workers=workers
        )
        assert not any(outcome.reason for outcome in outcomes)

    return whole


def build_read(dataset: PreparedDataset) -> Callable[[], Any]:
    """Decoding of all series, in this process."""
    stream = SliceStream(dataset, dataset.series, dataset.channels(WINDOWS), SLICES, BATCH)
    return lambda: deque(StackLoader(stream, 0, batch_size=None), maxlen=0)


def build_write(options: BenchOptions, dataset: PreparedDataset, output: Path) -> Callable[[], Any]:
    """All that is done with masks once they are predicted."""
    pair, spec, runtime = build_pair(options, dataset.size)
    stream = SliceStream(dataset, dataset.series, dataset.channels(WINDOWS), spec.slices, BATCH)
    parts = list(StackLoader(stream, 0, batch_size=None))
    masks = [predict_masks(pair, with_neighbours(part, runtime.device)).cpu().numpy() for part in parts]
    numbers = count()

    def write() -> None:
        with closing(MaskWriter(dataset, dataset.series, output / str(next(numbers)))) as writer:
            for part, mask in zip(parts, masks, strict=True):
                writer.add(part, mask)

    return write


def build_pair(options: BenchOptions, size: int) -> tuple[SegmenterPair, SegmenterSpec, Runtime]:
    mean, std = default_greys(WINDOWS)
    spec = SegmenterSpec(
        options.backbones, options.decoders, 1.0, WINDOWS, SLICES, size, (mean, mean), (std, std)
    )
    runtime = Runtime.create()
    with torch_seed(0):
        pair = OrganPair(spec).eval().to(runtime.device, memory_format=torch.channels_last)
    return pair, spec, runtime


def draw_organs(size: int) -> np.ndarray:
    """A label map (size, size) of five ellipses of the size of organs."""
    mask = np.zeros((size, size), dtype=np.uint8)
    places = {  # centre and half axes, as shares of the side
        "liver": (0.32, 0.4, 0.17, 0.2),
        "spleen": (0.76, 0.42, 0.08, 0.11),
        "left kidney": (0.66, 0.62, 0.06, 0.08),
        "right kidney": (0.34, 0.68, 0.06, 0.08),
        "bowel": (0.52, 0.3, 0.12, 0.08),
    }
    for organ, place in places.items():
        x, y, width, height = (round(share * size) for share in place)
        cv2.ellipse(mask, (x, y), (width, height), 0, 0, 360, ORGANS[organ], cv2.FILLED)
    return mask


def write_set(phantom: Path, folder: Path, series: int, slices: int) -> PreparedDataset:
    """Series of the phantom's slices, linked there and back again until they are long enough."""
    folder.mkdir()
    (folder / "dataset.json").hardlink_to(phantom / "dataset.json")
    source = PreparedDataset.open(phantom).series.iloc[[0] * series].reset_index(drop=True)
    images = image_folder(phantom, source["patient_id"][0], source["series_id"][0])
    found = int(source["slices"][0])
    table = source.assign(slices=slices, series_id=[f"{number}" for number in range(series)])
    table.to_csv(folder / "series.csv", index=False)
    for _, row in table.iterrows():
        target = image_folder(folder, row["patient_id"], row["series_id"])
        target.mkdir(parents=True)
        for index, shown in enumerate(there_and_back(found, slices)):
            (target / slice_name(index)).hardlink_to(images / slice_name(shown))
        pd.DataFrame({"z_mm": -SLICE_MM * np.arange(slices)}).to_csv(target / "slices.csv", index=False)
    return PreparedDataset.open(folder)


def there_and_back(found: int, wanted: int) -> Iterator[int]:
    """`wanted` indices: up to the last of `found`, back to the first, and so on."""
    return (min(index % (2 * found), -1 - index % (2 * found) + 2 * found) for index in range(wanted))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
