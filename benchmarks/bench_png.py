"""Size and speed of PNG settings on windowed CT slices, and the disk that the whole competition needs.

python benchmarks/bench_png.py --json png.json
python benchmarks/bench_png.py --quick
python benchmarks/bench_png.py --input data/my_series

Nine settings encode and decode the same slices in turn, cut and resized as prepare_data.py does it. A time is
the median over the slices of the best of three tries, on one thread. OpenCV encodes; the kit decodes, which
leaves images of more than one filter, and differences in colour, to OpenCV. `x` columns are relative to the
setting that the kit writes with, marked `*`.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from harness import BenchOptions, run_main
from phantom_files import open_series, phantom_series

from src.core.log import format_table, say
from src.ct.windows import apply_windows, get_windows
from src.data.png import PNG_COLOUR, PNG_GREY, decode_png
from src.data.selection import even_indices
from src.prepare.grey_slices import Crop, body_crop

COMPETITION_SLICES = 1_510_373
WINDOWS = (("soft",), ("soft", "organ", "wide"))
SETTINGS = (
    *((0, "default", "none"), (1, "default", "none"), (1, "rle", "none"), (1, "rle", "sub")),
    *((1, "fixed", "none"), (1, "huffman_only", "none"), (3, "default", "none")),
    *((6, "default", "none"), (6, "default", "all")),
)
"""Level of compression, strategy and filter."""
FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "all": cv2.IMWRITE_PNG_ALL_FILTERS,
}
TRIES = 3
FIGURES = ("KB", "encode ms", "decode ms")


@dataclass(frozen=True, kw_only=True)
class PngOptions(BenchOptions):
    input: Path | None = None
    """folder of DICOM files, one axial series; by default a series of the phantom is made"""


def main(options: PngOptions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        series = open_series(options.input) if options.input else phantom_series(Path(scratch) / "ct", 20.0)
        indices = even_indices(len(series.z_mm), min(len(series.z_mm), 4 if options.quick else 16))
        slices = [series.read(int(index)) for index in indices]
        crop = body_crop(slices, series.pixel_mm, series.shape)
    say(f"{options.input or 'phantom'}: {len(slices)} slices {slices[0].shape}")
    settings, disk = {}, []
    for names in WINDOWS:
        for size in (256,) if options.quick else (256, 384, 512):
            images = [cut_to_grey(hu, crop, size, names) for hu in slices]
            rows = compare(images, PNG_COLOUR if len(names) > 1 else PNG_GREY)
            say(f"\n{size} px, {len(names)} window(s)\n{format_table(rows, digits=2)}")
            settings[f"{size}px_{len(names)}windows"] = rows
            kilobytes = next(row["KB"] for row in rows if row["kit"])
            gigabytes = kilobytes * COMPETITION_SLICES / 1e6
            disk.append({"px": size, "windows": len(names), "KB per slice": kilobytes, "GB": gigabytes})
    say(f"\n{COMPETITION_SLICES:,} slices\n{format_table(disk, digits=0)}")
    return {"settings": settings, "disk": disk}


def cut_to_grey(hu: np.ndarray, crop: Crop, size: int, names: tuple[str, ...]) -> np.ndarray:
    """uint8 (size, size), or (size, size, 3) in the order that OpenCV encodes."""
    grey = apply_windows(crop.resize(hu, size), get_windows(names))
    return grey[..., 0] if len(names) == 1 else cv2.cvtColor(grey, cv2.COLOR_RGB2BGR)


def compare(images: list[np.ndarray], shipped: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row per setting: its KB, ms to encode and ms to decode, and each of them over that of `shipped`."""
    settings = {setting: parameters(*setting) for setting in SETTINGS}
    tries = np.array(  # (try, setting, image, 3); one after the other, so that a slow moment costs one try
        [[[measure(image, png) for image in images] for png in settings.values()] for _ in range(TRIES)]
    )
    medians = np.median(tries.min(axis=0), axis=1)  # (setting, 3)
    base = medians[list(settings.values()).index(shipped)]
    return [
        {
            **dict(zip(("level", "strategy", "filter"), setting, strict=True)),
            **dict(zip(FIGURES, row.tolist(), strict=True)),
            **{f"x {name}": value for name, value in zip(FIGURES, (row / base).tolist(), strict=True)},
            "kit": "*" if png == shipped else "",
        }
        for (setting, png), row in zip(settings.items(), medians, strict=True)
    ]


def parameters(level: int, strategy: str, png_filter: str) -> tuple[int, ...]:
    """A setting as OpenCV takes it."""
    return (
        *(cv2.IMWRITE_PNG_COMPRESSION, level),
        *(cv2.IMWRITE_PNG_STRATEGY, getattr(cv2, f"IMWRITE_PNG_STRATEGY_{strategy.upper()}")),
        *(cv2.IMWRITE_PNG_FILTER, FILTERS[png_filter]),
    )


def measure(image: np.ndarray, png: tuple[int, ...]) -> tuple[float, float, float]:
    """KB, ms to encode, ms to decode."""
    start = time.perf_counter()
    content = cv2.imencode(".png", image, png)[1].tobytes()
    middle = time.perf_counter()
    decode_png(content)
    return len(content) / 1e3, 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


if __name__ == "__main__":
    run_main(main, PngOptions, threads=1)
