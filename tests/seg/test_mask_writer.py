"""Masks of a prepared set: what is in memory while a series is segmented."""

import time
import weakref

from src.core.runtime import Runtime
from src.data.prepared import PreparedDataset
from src.seg import mask_writer
from src.seg.model import load_segmenter
from tests.helpers.seg_files import write_masked, write_pair


def test_segment_series_keeps_a_few_chunks_of_a_long_series(tmp_path, monkeypatch):
    """A writer that is slower than the networks holds them up."""
    dataset = PreparedDataset.open(write_masked(tmp_path / "set", series=1, slices=40))
    pair, spec = load_segmenter(write_pair(tmp_path / "run") / "segmenter.safetensors")
    images, masks, alive = [], [], []

    def predict_masks(*arguments):
        predicted = predict(*arguments)
        masks.append(weakref.ref(predicted))
        return predicted

    def with_neighbours(part, device):
        images.append(weakref.ref(part.images))
        return gather(part, device)

    def add(self, part, predicted):
        time.sleep(0.02)
        alive.append([sum(each() is not None for each in kept) for kept in (images, masks)])
        return write(self, part, predicted)

    predict, gather, write = (
        mask_writer.predict_masks,
        mask_writer.with_neighbours,
        mask_writer.MaskWriter.add,
    )
    monkeypatch.setattr(mask_writer, "predict_masks", predict_masks)
    monkeypatch.setattr(mask_writer, "with_neighbours", with_neighbours)
    monkeypatch.setattr(mask_writer.MaskWriter, "add", add)
    runtime = Runtime.create()
    results = mask_writer.segment_series(
        pair.to(runtime.device),
        spec,
        runtime,
        dataset,
        dataset.series,
        tmp_path / "masks",
        chunk=2,
        workers=0,
    )
    assert [result.reason for result in results] == [""]
    assert len(alive) == len(images) == 20
    # two wait; others are read, predicted and written meanwhile
    assert all(count <= 5 for counts in alive for count in counts), alive
