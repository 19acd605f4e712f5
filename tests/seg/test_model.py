"""The pair of sub-networks in its file."""

import torch

from src.seg.model import SegmenterPair, load_segmenter, save_segmenter
from tests.helpers.seg_files import SIZE, write_pair


def test_load_segmenter_restores_the_saved_pair(tmp_path):
    pair, spec = load_segmenter(write_pair(tmp_path) / "segmenter.safetensors")
    torch.manual_seed(1)
    fresh = SegmenterPair(spec, embedding=4).eval()
    save_segmenter(tmp_path / "fresh.safetensors", fresh, spec)
    loaded, loaded_spec = load_segmenter(tmp_path / "fresh.safetensors")
    assert loaded_spec == spec and not loaded.training
    images = torch.randint(0, 256, (3, SIZE, SIZE, spec.channels), dtype=torch.uint8)
    with torch.inference_mode():
        expected = fresh.to(memory_format=torch.channels_last).probabilities(images)
        assert torch.equal(loaded.probabilities(images), expected)
        assert not torch.equal(pair.probabilities(images), expected)
