"""Features of an encoder on its own input and on others."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from encoder_inputs import InputOptions, main

from tests.helpers.encoder_files import write_encoder
from tests.helpers.voco_files import draw_noise, write_prepared

PRESETS = ("cls/cnn_lstm", "cls/organ_aware", "seg/dual")


@pytest.mark.parametrize(
    ("learnt", "aligned"),
    [
        ({"windows": ("soft", "organ", "wide")}, (*PRESETS, "all x 1", "all x 3")),
        ({"windows": ("soft",)}, (*PRESETS, "soft x 1", "soft x 3")),
        ({"windows": ("soft",), "neighbours": 3}, (*PRESETS, "soft x 3")),
        ({"windows": ("soft",), "neighbours": 3, "neighbour_mm": 10.0}, PRESETS[:2]),
    ],
    ids=str,
)
def test_presets_keep_the_features_of_an_encoder(tmp_path, learnt, aligned):
    """On noise no other input gives the same features; dual has no distances."""
    data = write_prepared(tmp_path / "set", draw_noise, series=2)
    count = len(learnt["windows"])
    write_encoder(tmp_path / "encoder.safetensors", mean=(0.5,) * count, std=(0.25,) * count, **learnt)
    options = InputOptions(encoder=tmp_path / "encoder.safetensors", data=data, slices=4)
    rows = {row[""]: row["lowest"] for row in main(options)["rows"]}
    assert tuple(name for name, lowest in rows.items() if lowest > 0.9999) == aligned
