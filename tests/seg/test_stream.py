"""The stream of slices gives each slice with its neighbours, series after series, and reads none in vain."""

import numpy as np
import pandas as pd
import pytest
import torch

from src.data.prepared import PreparedDataset, as_channels, image_folder, slice_name
from src.seg import stream as stream_module
from src.seg.stream import SliceStream, with_neighbours
from tests.helpers.seg_files import series_ids
from tests.helpers.voco_files import draw_noise, write_prepared

COUNTS = (7, 12, 1, 2)  # slices of the series: shorter than a chunk, or than what the networks see together
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_prepared(tmp_path_factory.mktemp("noise") / "set", draw_noise, series=4, slices=12)
    table = pd.read_csv(folder / "series.csv", dtype={"patient_id": str, "series_id": str})
    table.assign(slices=COUNTS).to_csv(folder / "series.csv", index=False)
    return PreparedDataset.open(folder)


def open_stream(dataset, slices=3, chunk=4, windows=(0, 1, 2)):
    return SliceStream(dataset, dataset.series, windows, slices, chunk)


def inputs_of(chunks, row):
    return torch.cat([with_neighbours(part, CPU) for part in chunks if part.row == row]).numpy()


@pytest.mark.parametrize("windows", [(0, 1, 2), (2, 0), (1,)], ids=str)
@pytest.mark.parametrize("slices", [1, 3, 5])
def test_the_stream_is_what_a_whole_series_gives(dataset, slices, windows):
    chunks = list(open_stream(dataset, slices, windows=windows).read(0))
    for row, (ids, count) in enumerate(zip(series_ids(dataset), COUNTS, strict=True)):
        images = dataset.read_slices(*ids, range(count))[..., list(windows)]
        stacks = [
            [images[min(max(index + step, 0), count - 1)] for step in range(-(slices // 2), slices // 2 + 1)]
            for index in range(count)
        ]
        expected = as_channels(np.array(stacks))
        assert expected.shape == (count, 48, 48, slices * len(windows))
        np.testing.assert_array_equal(inputs_of(chunks, row), expected)


def test_the_windows_of_a_slice_are_together_and_the_ends_repeat(dataset):
    """Spelt out, channel by channel, since training and prediction must agree on it."""
    inputs = inputs_of(list(open_stream(dataset, windows=(2, 0)).read(0)), row=0)
    images = dataset.read_slices(*series_ids(dataset)[0], range(7))
    for index, neighbours in ((0, (0, 0, 1)), (3, (2, 3, 4)), (4, (3, 4, 5)), (6, (5, 6, 6))):
        wanted = [images[neighbour, ..., window] for neighbour in neighbours for window in (2, 0)]
        np.testing.assert_array_equal(inputs[index], np.dstack(wanted))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_no_chunk_crosses_a_series(dataset, chunk):
    stream = open_stream(dataset, chunk=chunk)
    chunks = list(stream.read(0))
    assert len(chunks) == len(stream)
    covered = [(part.row, part.first + place) for part in chunks for place in range(len(part.places))]
    assert covered == [(row, index) for row, count in enumerate(COUNTS) for index in range(count)]
    for part in chunks:
        assert len(part.places) <= chunk
        assert part.is_last == (part.first + len(part.places) == COUNTS[part.row])


def test_each_slice_is_read_once_a_chunk(dataset, monkeypatch):
    read = []

    def note(folder, indices, *rest):
        read.append(list(indices))
        return read_windows(folder, indices, *rest)

    read_windows = stream_module.read_windows
    monkeypatch.setattr(stream_module, "read_windows", note)
    chunks = list(open_stream(dataset, slices=5).read(0))
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
def test_workers_change_nothing(dataset, workers):
    stream = open_stream(dataset)
    alone, shared = list(stream.read(0)), list(stream.read(workers))
    assert len(alone) == len(shared) == len(stream)
    for one, other in zip(alone, shared, strict=True):
        assert (one.row, one.first, one.is_last, one.error) == (
            other.row,
            other.first,
            other.is_last,
            other.error,
        )
        assert torch.equal(with_neighbours(one, CPU), with_neighbours(other, CPU))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_slice_is_told_and_the_stream_goes_on(tmp_path, workers):
    folder = write_prepared(tmp_path / "set", draw_noise, series=2, slices=12)
    dataset = PreparedDataset.open(folder)
    damaged = image_folder(folder, *series_ids(dataset)[0]) / slice_name(8)
    damaged.write_bytes(damaged.read_bytes()[:100])
    chunks = list(open_stream(dataset).read(workers))
    assert [bool(part.error) for part in chunks] == [False, True, True, False, False, False]
    assert all(f"{damaged} is damaged" in part.error for part in chunks[1:3])  # one as a neighbour
    assert [part.is_last for part in chunks] == [False, False, True] * 2
