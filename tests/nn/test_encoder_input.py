"""The input that an encoder learnt from, as the default of later stages."""

import pytest

from src.data.selection import Neighbours
from src.nn.encoder_input import EncoderInput, choose_input, warn_of_another_input
from tests.helpers.encoder_files import write_encoder

PREPARED = ("soft", "organ", "wide")
SINGLE = EncoderInput(("wide", "soft"), Neighbours())
FAR = EncoderInput(("soft",), Neighbours(3, 4.0))


@pytest.mark.parametrize(
    ("learnt", "given", "expected"),
    [
        (None, {}, EncoderInput(PREPARED, Neighbours())),
        (SINGLE, {}, SINGLE),
        (FAR, {}, FAR),
        (FAR, {"neighbours": 3}, FAR),
        (FAR, {"neighbours": 5}, EncoderInput(("soft",), Neighbours(5, 0.0))),
        (FAR, {"neighbour_mm": 0.0}, EncoderInput(("soft",), Neighbours(3, 0.0))),
        (FAR, {"windows": ("wide",), "neighbours": 1}, EncoderInput(("wide",), Neighbours())),
        (EncoderInput(("lung", "soft"), Neighbours(3)), {}, EncoderInput(PREPARED, Neighbours(3))),
    ],
    ids=str,
)
def test_choose_input_is_what_is_given_then_what_the_encoder_learnt_from(learnt, given, expected):
    assert choose_input(learnt, PREPARED, **given) == expected


@pytest.mark.parametrize(
    ("learnt", "shown", "warning"),
    [
        (SINGLE, EncoderInput(("soft", "wide"), Neighbours()), None),  # kernels are reordered
        (SINGLE, EncoderInput(("soft", "wide"), Neighbours(1, 4.0)), None),  # no neighbour, no distance
        (FAR, FAR, None),
        (SINGLE, EncoderInput(("soft", "wide"), Neighbours(3)), None),  # the slice is among them
        (FAR, EncoderInput(("soft",), Neighbours(5, 4.0)), None),
        (FAR, EncoderInput(("soft",), Neighbours()), "4 mm apart, its input is now soft of single slices"),
        (SINGLE, EncoderInput(("soft",), Neighbours()), "wide soft of single slices, its input is now soft"),
        (FAR, EncoderInput(("soft",), Neighbours(3)), "4 mm apart, its input is now soft of 3 adjacent"),
    ],
    ids=str,
)
def test_warn_of_another_input_warns_once_of_a_difference(tmp_path, learnt, shown, warning, capsys):
    count, distance_mm = learnt.neighbours.count, learnt.neighbours.distance_mm
    about = {"windows": learnt.windows, "neighbours": count, "neighbour_mm": distance_mm}
    write_encoder(tmp_path / "encoder.safetensors", **about)
    warn_of_another_input(tmp_path / "encoder.safetensors", shown)
    warn_of_another_input("imagenet", shown)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == (warning is not None)
    assert warning is None or warning in lines[0]
    is_more = warning is None and shown.neighbours.count > learnt.neighbours.count
    assert printed.out.count("kernels of the other slices begin at zero") == is_more
