"""The input that an encoder learnt from: the default of later stages, and a check of what they show it.

Features of another input are others: one window with two neighbours, shown to an encoder that learnt three
windows of one slice, gives features whose cosine to its own is about 0.3 (benchmarks/encoder_inputs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.core.log import warn
from src.data.selection import Neighbours
from src.nn.encoder import EncoderFile, find_encoder_file


@dataclass(frozen=True)
class EncoderInput:
    """Channels of an encoder: windows of each slice, slice by slice."""

    windows: tuple[str, ...]
    neighbours: Neighbours

    @classmethod
    def of(cls, about: EncoderFile) -> "EncoderInput":
        """Return the input that an encoder was trained on."""
        return cls(about.windows, Neighbours(about.neighbours, about.neighbour_mm))

    @property
    def channels(self) -> int:
        return len(self.windows) * self.neighbours.count

    def __str__(self) -> str:
        count, distance_mm = self.neighbours.count, self.neighbours.distance_mm
        if count == 1:
            return f"{' '.join(self.windows)} of single slices"
        return f"{' '.join(self.windows)} of {count} " + (
            f"slices {distance_mm:g} mm apart" if distance_mm else "adjacent slices"
        )

    def equals(self, other: "EncoderInput") -> bool:
        """Return whether two inputs are alike, in any order of the windows: kernels are found by window."""
        mine, others = (each.neighbours for each in (self, other))
        is_same = mine == others or mine.count == others.count == 1
        return is_same and sorted(self.windows) == sorted(other.windows)


def choose_input(
    learnt: EncoderInput | None,
    prepared: Sequence[str],
    windows: Sequence[str] | None = None,
    neighbours: int | None = None,
    neighbour_mm: float | None = None,
) -> EncoderInput:
    """Choose the input of an encoder in a later stage: what is given, else what the encoder learnt from.

    Args:
        learnt: input of the first weights; None if it is unknown.
        prepared: windows of the data.
        windows: default: those that the encoder learnt from if all are prepared, else all prepared ones.
        neighbours: default: as many as the encoder learnt from, else 1.
        neighbour_mm: default: the encoder's distance if the number is the encoder's, else 0.
    """
    if windows is None:
        is_known = learnt is not None and not set(learnt.windows) - set(prepared)
        windows = learnt.windows if is_known else prepared
    own = learnt.neighbours if learnt is not None else Neighbours()
    if neighbours is None:
        neighbours = own.count
    if neighbour_mm is None:
        neighbour_mm = own.distance_mm if neighbours == own.count else 0.0
    return EncoderInput(tuple(windows), Neighbours(neighbours, neighbour_mm))


def warn_of_another_input(path: Path | None, shown: EncoderInput) -> None:
    """Warn if a stage shows another input than an encoder learnt from.

    Args:
        path: file of first weights; None for none. Only encoder files record their input.
    """
    about = find_encoder_file(path) if path else None
    if about is None:
        return
    learnt = EncoderInput.of(about)
    if not shown.equals(learnt):
        warn(f"{path} learnt from {learnt}, its input is now {shown}: its features are others")
