"""What segmenting whole series costs beyond the networks' forward passes, and memory by length of a series.

python benchmarks/bench_segment.py --json segment.json
python benchmarks/bench_segment.py --quick

Slices of one phantom patient, prepared at 256 px in three windows, make series of equal length. Side by side,
in turn, torch on one thread in both:

    forward   the pair on batches that lie in memory: uint8 slices in, label maps out
    whole     what segment.py does with them: starting the process that reads, decoding, the same batches,
              naming the kidneys, erasing specks, measuring, writing masks and tables
    read      decoding alone, which the worker processes share
    write     what the one thread that follows the model does: cleaning, measuring and writing alone

A ratio is the median over the rounds. Weights are random, and masks of noise would have thousands of pieces
per slice: the pair's answer is drawn to ellipses of the size of organs. Peak memory is that of a new process,
which reads its slices itself, for a short and for a long series.
"""

import statistics
import tempfile
from collections import deque
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from harness import BenchOptions, alternate, median_ratio, peak_bytes, run_main
from phantom_files import link_prepared, prepare_phantom

from src.core.log import format_table, say
from src.core.runtime import Runtime, torch_seed
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset
from src.nn.encoder import default_greys
from src.nn.loading import StackLoader
from src.seg.mask_writer import MaskWriter, segment_series
from src.seg.model import CLASSES, SegmenterPair, SegmenterSpec, predict_masks
from src.seg.predict import SliceStream, with_neighbours

TIME_LIMIT = 1.2
WINDOWS, SLICES, BATCH = ("soft", "organ", "wide"), 3, 16
BACKBONES, DECODERS = ("test_efficientnet", "test_resnet"), ("unet", "deeplabv3plus")
"""Of the pair; small enough for a CPU."""
WORKERS = 1
"""Processes that read slices beside the forward passes."""


class OrganPair(SegmenterPair):
    """A pair whose answer is drawn to the same organs in every slice."""

    def __init__(self, spec: SegmenterSpec) -> None:
        super().__init__(spec)
        organs = torch.nn.functional.one_hot(torch.from_numpy(draw_organs(spec.size)).long(), CLASSES)
        self.register_buffer("organs", 2.0 * organs.permute(2, 0, 1))  # (CLASSES, H, W)

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        return super().probabilities(images) + self.organs


def main(options: BenchOptions) -> dict[str, Any]:
    say(f"{' and '.join(map('+'.join, zip(BACKBONES, DECODERS, strict=True)))}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        phantom, mean_kb = prepare_phantom(folder, options.quick)
        times = compare_times(options.quick, phantom, folder)
        memory = compare_memory(options.quick, phantom, folder)
    pair = {"backbones": BACKBONES, "decoders": DECODERS, "workers": WORKERS}
    return {**pair, "mean_slice_kb": mean_kb, **times, "memory": memory}


def compare_times(quick: bool, phantom: Path, folder: Path) -> dict[str, Any]:
    """Seconds per slice of both ways, and their ratio."""
    series, slices = (2, 24) if quick else (4, 60)
    data = link_prepared(phantom, folder / "timed", series, slices)
    works = {
        "forward": build_forward(data),
        "whole": build_whole(data, folder / "masks", WORKERS),
        "read": build_read(data),
        "write": build_write(data, folder / "written"),
    }
    seconds = alternate(works, 3 if quick else 5)
    ratio = median_ratio(seconds["whole"], seconds["forward"])
    count = series * slices
    row = {f"{name}, ms": 1e3 * statistics.median(tries) / count for name, tries in seconds.items()}
    row["whole / forward"] = ratio
    say(f"\nper slice of {series} series of {slices} slices\n{format_table([row], 3)}")
    say(f"whole / forward is to be at most {TIME_LIMIT}, with more than a few series")
    return row


def compare_memory(quick: bool, phantom: Path, folder: Path) -> dict[str, Any]:
    """Peak bytes for two lengths of a series, and what each further slice adds."""
    lengths = (48, 144) if quick else (48, 480)
    peaks = []
    for slices in lengths:
        data = link_prepared(phantom, folder / f"{slices}", 1, slices)
        peaks.append(peak_bytes(build_whole, data, folder / f"masks_{slices}", 0))
    added = (peaks[1] - peaks[0]) / (lengths[1] - lengths[0])
    rows = [{"slices": slices, "peak MB": peak / 1e6} for slices, peak in zip(lengths, peaks, strict=True)]
    say(f"\n{format_table(rows, 1)}")
    kept = data.size**2
    say(f"{added / 1e3:.1f} KB for each further slice; its mask kept would take {kept / 1e3:.0f} KB")
    return {"slices": lengths, "peak_bytes": peaks, "added_bytes_per_slice": added, "is_flat": added < kept}


def build_forward(dataset: PreparedDataset) -> Callable[[], Any]:
    """The pair on the batches of all series, already on the device."""
    pair, _, runtime = build_pair(dataset.size)
    batches = [with_neighbours(part, runtime.device) for part in read_chunks(dataset)]

    def forward() -> None:
        for images in batches:
            with runtime.autocast():
                predict_masks(pair, images).cpu()

    return forward


def build_whole(dataset: PreparedDataset, output: Path, workers: int) -> Callable[[], Any]:
    """Masks and tables of all series, in a new folder each time."""
    pair, spec, runtime = build_pair(dataset.size)
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
    return lambda: deque(read_chunks(dataset), maxlen=0)


def build_write(dataset: PreparedDataset, output: Path) -> Callable[[], Any]:
    """All that is done with masks once they are predicted."""
    pair, _, runtime = build_pair(dataset.size)
    parts = list(read_chunks(dataset))
    masks = [predict_masks(pair, with_neighbours(part, runtime.device)).cpu().numpy() for part in parts]
    numbers = count()

    def write() -> None:
        with closing(MaskWriter(dataset, dataset.series, output / str(next(numbers)))) as writer:
            for part, mask in zip(parts, masks, strict=True):
                writer.add(part, mask)

    return write


def read_chunks(dataset: PreparedDataset) -> StackLoader:
    stream = SliceStream(dataset, dataset.series, dataset.channels(WINDOWS), SLICES, BATCH)
    return StackLoader(stream, 0, batch_size=None)


def build_pair(size: int) -> tuple[SegmenterPair, SegmenterSpec, Runtime]:
    mean, std = default_greys(WINDOWS)
    spec = SegmenterSpec(BACKBONES, DECODERS, 1.0, WINDOWS, SLICES, size, (mean, mean), (std, std))
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


if __name__ == "__main__":
    run_main(main, BenchOptions, threads=1)
