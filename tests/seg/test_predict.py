"""Chunks of slices with their neighbours, and masks of a series in memory."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from src.core.errors import UserError
from src.data.organ_tables import voxel_volumes_ml
from src.data.prepared import PreparedDataset, as_channels, image_folder, slice_name
from src.nn.loading import StackLoader
from src.seg import predict
from src.seg.components import ComponentScan
from src.seg.model import load_segmenter, predict_masks
from src.seg.predict import SliceStream, plan_spans, segment_volume, with_neighbours
from tests.helpers.seg_files import PIXEL_MM, series_ids, write_masked, write_pair
from tests.helpers.voco_files import draw_noise, write_prepared

COUNTS = (7, 12, 1, 2)  # slices of the series: fewer than a chunk, or than the networks' input
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_prepared(tmp_path_factory.mktemp("noise") / "set", draw_noise, series=4, slices=12)
    table = pd.read_csv(folder / "series.csv", dtype={"patient_id": str, "series_id": str})
    table.assign(slices=COUNTS).to_csv(folder / "series.csv", index=False)
    return PreparedDataset.open(folder)


def read_chunks(dataset, slices=3, chunk=4, channels=(0, 1, 2), workers=0):
    stream = SliceStream(dataset, dataset.series, channels, slices, chunk)
    chunks = list(StackLoader(stream, workers, batch_size=None))
    assert len(chunks) == len(stream)
    return chunks


def inputs_of(chunks, row):
    return torch.cat([with_neighbours(part, CPU) for part in chunks if part.row == row]).numpy()


@pytest.mark.parametrize("channels", [(0, 1, 2), (2, 0), (1,)], ids=str)
@pytest.mark.parametrize("slices", [1, 3, 5])
def test_slice_stream_gives_each_slice_with_its_neighbours(dataset, slices, channels):
    chunks = read_chunks(dataset, slices, channels=channels)
    for row, (ids, count) in enumerate(zip(series_ids(dataset), COUNTS, strict=True)):
        images = dataset.read_slices(*ids, range(count))[..., list(channels)]
        stacks = [
            [images[min(max(index + step, 0), count - 1)] for step in range(-(slices // 2), slices // 2 + 1)]
            for index in range(count)
        ]
        expected = as_channels(np.array(stacks))
        assert expected.shape == (count, 48, 48, slices * len(channels))
        np.testing.assert_array_equal(inputs_of(chunks, row), expected)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_slice_stream_chunks_hold_slices_of_one_series(dataset, chunk):
    chunks = read_chunks(dataset, chunk=chunk)
    covered = [(part.row, part.first + place) for part in chunks for place in range(len(part.places))]
    assert covered == [(row, index) for row, count in enumerate(COUNTS) for index in range(count)]
    for part in chunks:
        assert len(part.places) <= chunk
        assert part.is_last == (part.first + len(part.places) == COUNTS[part.row])


def test_slice_stream_reads_each_slice_once_per_chunk(dataset, monkeypatch):
    read = []

    def note(folder, indices, *rest):
        read.append(list(indices))
        return read_windows(folder, indices, *rest)

    read_windows = predict.read_windows
    monkeypatch.setattr(predict, "read_windows", note)
    chunks = read_chunks(dataset, slices=5)
    assert read == [
        [0, 1, 2, 3, 4, 5],
        [2, 3, 4, 5, 6],
        [0, 1, 2, 3, 4, 5],
        [2, 3, 4, 5, 6, 7, 8, 9],
        [6, 7, 8, 9, 10, 11],
        [0],
        [0, 1],
    ]
    assert [len(part.images) for part in chunks] == [len(indices) for indices in read]


@pytest.mark.parametrize("workers", [1, 2])
def test_slice_stream_does_not_depend_on_workers(dataset, workers):
    for one, other in zip(read_chunks(dataset), read_chunks(dataset, workers=workers), strict=True):
        assert one[:3] == other[:3] and one.error == other.error
        assert torch.equal(with_neighbours(one, CPU), with_neighbours(other, CPU))


@pytest.mark.parametrize("workers", [0, 1])
def test_slice_stream_marks_chunks_with_a_damaged_slice_and_goes_on(tmp_path, workers):
    folder = write_prepared(tmp_path / "set", draw_noise, series=2, slices=12)
    dataset = PreparedDataset.open(folder)
    damaged = image_folder(folder, *series_ids(dataset)[0]) / slice_name(8)
    damaged.write_bytes(damaged.read_bytes()[:100])
    chunks = read_chunks(dataset, workers=workers)
    assert [bool(part.error) for part in chunks] == [False, True, True, False, False, False]
    assert all(f"{damaged} is damaged" in part.error for part in chunks[1:3])  # one as a neighbour
    assert [part.is_last for part in chunks] == [False, False, True] * 2


def test_segment_volume_refuses_a_single_slice_and_probabilities_that_are_not_finite(tmp_path):
    """Its masks are those of segment.py: tests/infer/test_organ_finder.py."""
    dataset = PreparedDataset.open(write_masked(tmp_path / "set", series=1))
    pair, spec = load_segmenter(write_pair(tmp_path / "run") / "segmenter.safetensors")
    images = dataset.read_slices(*series_ids(dataset)[0], range(12))[
        ..., list(dataset.channels(spec.windows))
    ]
    z_mm = dataset.z_mm(*series_ids(dataset)[0])
    with pytest.raises(UserError, match="organs of a single slice"):
        segment_volume(pair, spec, images[:1], z_mm[:1], PIXEL_MM, device=CPU)
    with torch.no_grad():
        pair.a.net.segmentation_head[0].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        segment_volume(pair, spec, images, z_mm, PIXEL_MM, device=CPU)


Z_MM = -np.cumsum([0, 1, 1, 1, 1, 1, 3, 3, 1, 1, 1, 1.0])  # 12 slices


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("spacing_mm", [0.0, 2.0, 4.0, 1000.0])
def test_plan_spans_cover_every_slice_once(chunk, spacing_mm):
    spans = plan_spans(Z_MM, chunk, spacing_mm)
    assert [index for span in spans for index in range(span.first, span.stop)] == list(range(12))
    seen = sorted({int(key) for span in spans for key in span.keys})
    expected = {
        0.0: list(range(12)),
        2.0: [0, 2, 4, 5, 6, 7, 8, 10, 11],
        4.0: [0, 4, 6, 8, 11],
        1000.0: [0, 11],
    }
    assert seen == expected[spacing_mm]
    assert all(span.keys[0] == span.first and len(span.keys) <= chunk + 1 for span in spans)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_segment_volume_interpolates_between_the_slices_that_the_networks_see(tmp_path, chunk):
    dataset = PreparedDataset.open(write_masked(tmp_path / "set", series=1))
    pair, spec = load_segmenter(write_pair(tmp_path / "run") / "segmenter.safetensors")
    windows = list(dataset.channels(spec.windows))
    images = dataset.read_slices(*series_ids(dataset)[0], range(12))[..., windows]
    seen = []
    pair.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    maps, _ = segment_volume(pair, spec, images, Z_MM, 20.0, device=CPU, chunk=chunk, spacing_mm=4.0)
    padded = np.concatenate([images[:1], images, images[-1:]])
    keys = [0, 4, 6, 8, 11]
    inputs = as_channels(np.stack([padded[key : key + 3] for key in keys]))
    with torch.inference_mode():
        at_keys = pair.probabilities(torch.from_numpy(inputs)).permute(0, 2, 3, 1).numpy()
    flat = np.stack([np.interp(-Z_MM, -Z_MM[keys], values) for values in at_keys.reshape(5, -1).T], axis=1)
    expected = flat.reshape(12, *at_keys.shape[1:]).argmax(-1).astype(np.uint8)
    scan = ComponentScan()
    for mask in expected:
        scan.add(mask)
    clean_up = scan.clean_up(voxel_volumes_ml(20.0, Z_MM))
    cleaned = np.stack([clean_up.apply(mask, index) for index, mask in enumerate(expected)])
    assert sum(seen) - 5 <= 5 + len(plan_spans(Z_MM, chunk, 4.0))  # 5 of the check above
    assert len(np.unique(maps)) > 2 and (maps != cleaned).mean() < 1e-3


def test_predict_masks_reduces_slices_to_the_size_of_the_pair(tmp_path):
    dataset = PreparedDataset.open(write_masked(tmp_path / "set", series=1, size=64, pixel_mm=4.0))
    pair, spec = load_segmenter(write_pair(tmp_path / "run", slices=1) / "segmenter.safetensors")
    images = dataset.read_slices(*series_ids(dataset)[0], range(12))[
        ..., list(dataset.channels(spec.windows))
    ]
    halves = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in images])
    with torch.inference_mode():
        of_halves = pair.probabilities(torch.from_numpy(halves)).permute(0, 2, 3, 1).numpy()
    enlarged = np.stack([cv2.resize(each, (64, 64), interpolation=cv2.INTER_LINEAR) for each in of_halves])
    masks = predict_masks(pair, torch.from_numpy(images)).numpy()
    assert masks.shape == (12, 64, 64) and len(np.unique(masks)) > 2
    assert (masks == enlarged.argmax(-1)).mean() > 0.97  # grey levels of `halves` are rounded
