"""Small prepared sets with masks, and segmentation models of random weights, for the tests of segment.py."""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

import segment
from src.core.errors import exit_on_user_error
from src.core.targets import ORGANS
from src.data.prepared import PreparedDataset, as_channels, image_folder, mask_folder, slice_name
from src.nn.encoder import default_greys
from src.seg.model import SegmenterPair, SegmenterSpec, predict_masks, save_segmenter
from tests.helpers.voco_files import write_prepared, write_slice_table

SIZE = 32
PIXEL_MM = 8.0  # so that some components are above a millilitre and some below


def write_pair(folder: Path, *, seed: int = 13, only: str | None = None, **changes: object) -> Path:
    """A run folder with random weights from a seed, which predict blobs of all organs, or of `only` one."""
    given = {"windows": ("soft", "organ"), "slices": 3, "size": SIZE} | changes
    mean, std = default_greys(given["windows"])
    spec = SegmenterSpec(
        backbones=("test_efficientnet", "test_resnet"),
        decoders=("linknet", "linknet"),
        decoder_width=1.0,
        means=(mean, mean),
        stds=(std, std),
        **given,
    )
    torch.manual_seed(seed)
    pair = SegmenterPair(spec, embedding=4)
    if only:
        for part in (pair.a, pair.b):
            part.net.segmentation_head[0].bias.data[ORGANS[only]] += 100
    save_segmenter(folder / "segmenter.safetensors", pair, spec, seed=seed)
    return folder


def write_masked(folder: Path, *, size: int = SIZE, **changes: object) -> Path:
    """A prepared set of three windows; every second series has true masks, one box per organ."""
    given = {"series": 5, "slices": 12, "pixel_mm": PIXEL_MM} | changes
    write_prepared(folder, lambda series, index: draw_tissue(series, index, size), **given)
    dataset = PreparedDataset.open(folder)
    mask = np.zeros((size, size), dtype=np.uint8)
    for label in ORGANS.values():
        mask[4 * label : 4 * label + 3, size // 4 : size // 2] = label
    for ids in series_ids(dataset)[::2]:
        dataset.write_masks(*ids, [mask] * given["slices"])
    return folder


def draw_tissue(series: int, index: int, size: int = SIZE) -> np.ndarray:
    """Smooth grey levels that change every third slice, so that components span several slices."""
    levels = np.random.default_rng((series, index // 3)).uniform(0, 255, (5, 5, 3))
    smooth = cv2.resize(levels, (size, size), interpolation=cv2.INTER_CUBIC)
    return smooth.clip(0, 255).astype(np.uint8)


def lengthen(data: Path, slices: int) -> Path:
    """Make every series of a set longer by repeated hard links to its slices and masks."""
    dataset = PreparedDataset.open(data)
    for ids, count in zip(series_ids(dataset), dataset.series["slices"], strict=True):
        images, masks = image_folder(data, *ids), mask_folder(data, *ids)
        for folder in (images, masks) if masks.is_dir() else (images,):
            for index in range(count, slices):
                (folder / slice_name(index)).hardlink_to(folder / slice_name(index % count))
        write_slice_table(images, -2.0 * np.arange(slices))
    dataset.series.assign(slices=slices).to_csv(data / "series.csv", index=False)
    return data


def series_ids(dataset: PreparedDataset) -> list[tuple[str, str]]:
    return list(zip(dataset.series["patient_id"], dataset.series["series_id"], strict=True))


def predict_whole(
    pair: SegmenterPair, spec: SegmenterSpec, dataset: PreparedDataset, ids: tuple[str, str], batch: int
) -> np.ndarray:
    """The masks (Z, H, W) of a series before clean-up, its slices read at once and split into batches."""
    windows = list(dataset.channels(spec.windows))
    count = dataset.series.set_index(["patient_id", "series_id"]).loc[ids, "slices"]
    images = dataset.read_slices(*ids, range(count))[..., windows]
    half = spec.slices // 2
    padded = np.concatenate([images[:1]] * half + [images] + [images[-1:]] * half)
    inputs = as_channels(np.stack([padded[index : index + spec.slices] for index in range(count)]))
    batches = torch.from_numpy(inputs).split(batch)
    return torch.cat([predict_masks(pair, part) for part in batches]).numpy()


def half_written(folder: Path) -> list[Path]:
    """Temporary files and folders below a folder."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def run_segment(model: Path, data: Path, *arguments: object) -> SimpleNamespace:
    """Run segment.py on one thread: exit status, lines of stdout and of stderr."""
    given = ["--model", model, "--data", data, "--workers", 0, *arguments]
    out, err, status, threads = StringIO(), StringIO(), 0, torch.get_num_threads()
    torch.set_num_threads(1)  # as each process of torchrun does
    try:
        with redirect_stdout(out), redirect_stderr(err), exit_on_user_error():
            segment.main([str(argument) for argument in given])
    except SystemExit as end:
        status = end.code
    finally:
        torch.set_num_threads(threads)
    return SimpleNamespace(status=status, out=out.getvalue().splitlines(), err=err.getvalue().splitlines())
