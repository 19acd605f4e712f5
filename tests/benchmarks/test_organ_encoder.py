"""The encoder of an organ segmentation: which of its weights were trained, and what its file says."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from organ_encoder import OrganOptions, read_tiles, train_organs

from src.nn.encoder import create_encoder, read_encoder_file
from src.nn.first_weights import load_first_weights
from src.seg.model import load_segmenter
from tests.helpers.seg_runs import make_options, write_organ_set

BACKBONE = "tf_efficientnet_lite0"


def organ_options(data: Path, output: Path, **changes) -> OrganOptions:
    given = {"backbones": (BACKBONE, "test_resnet"), "first_weights": ("package", "none"), "slices": 1}
    return OrganOptions(**vars(make_options(data, output, steps=2, **given | changes)))


def test_train_organs_exports_the_trained_blocks_and_the_first_weights_behind_them(tmp_path):
    data = write_organ_set(tmp_path / "set")
    path = train_organs(organ_options(data, tmp_path / "run"))
    about = read_encoder_file(path)
    assert (about.name, about.in_channels, about.trained_by["script"]) == (BACKBONE, 1, "train_seg.py")
    assert len(about.patients) == len(set(about.patients)) == 6
    first, exported = (create_encoder(BACKBONE, 1) for _ in range(2))
    greys = load_first_weights(first, "package", about.windows)
    assert about.mean == pytest.approx(greys.mean) and about.std == pytest.approx(greys.std)
    load_first_weights(exported, path, about.windows)
    trained = load_segmenter(tmp_path / "run" / "segmenter.safetensors")[0].a.encoder.state_dict()
    for name, value in exported.named_parameters():
        wanted = trained if name in trained else first.state_dict()
        assert torch.equal(value, wanted[name]), name
        assert (name not in trained) == name.startswith(("conv_head", "bn2"))
    assert not torch.equal(trained["conv_stem.weight"], first.state_dict()["conv_stem.weight"])


def test_train_organs_exports_batch_statistics_of_tiles(tmp_path):
    """Without training they are those of the first weights on the tiles of `plus`, not on whole slices."""
    data = write_organ_set(tmp_path / "set")
    options = organ_options(data, tmp_path / "run", lr=1e-12)
    path = train_organs(options)
    encoder = create_encoder(BACKBONE, 1)
    greys = load_first_weights(encoder, path, ("soft",))
    tiles = torch.cat(list(read_tiles(options, ("soft",))))
    assert tiles.shape[1:] == (1, 64, 64) and len(tiles) == 6 * 43  # of each series once
    with torch.inference_mode():
        seen = encoder.conv_stem((tiles / 255 - greys.mean[0]) / greys.std[0])
    assert torch.allclose(encoder.bn1.running_mean, seen.mean((0, 2, 3)), atol=1e-4)


def test_organ_options_refuse_neighbouring_slices(tmp_path):
    with pytest.raises(ValueError, match="--slices must be 1"):
        organ_options(tmp_path, tmp_path, slices=3)


def test_organ_options_refuse_patients_to_score(tmp_path):
    with pytest.raises(ValueError, match="--validation must be 0"):
        organ_options(tmp_path, tmp_path, validation=0.2)
