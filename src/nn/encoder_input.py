"""The input that an encoder learnt from: the default of later stages, and a check of what they show it.

Another input gives other features: with one of the three windows that an encoder learnt from, their cosine
to its own is 0.5 to 0.6 (benchmarks/encoder_inputs.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.core.log import say, warn
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
        return self.is_part_of(other) and other.is_part_of(self)

    def is_part_of(self, other: "EncoderInput") -> bool:
        """Return whether another input has these windows, and these slices in its middle."""
        mine, others = self.neighbours, other.neighbours
        is_near = mine.count == 1 or mine.distance_mm == others.distance_mm
        return is_near and mine.count <= others.count and sorted(self.windows) == sorted(other.windows)


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


def find_input(source: str | Path) -> EncoderInput | None:
    """Return the input that first weights were trained on; None if no encoder file records it."""
    about = find_encoder_file(source)
    return None if about is None else EncoderInput.of(about)


def warn_of_another_input(source: str | Path, shown: EncoderInput) -> None:
    """Warn if a stage shows another input than an encoder learnt from; report further neighbours.

    Args:
        source: first weights, as in `load_first_weights`.
    """
    learnt = find_input(source)
    if learnt is None:
        return
    difference = f"{source} learnt from {learnt}, its input is now {shown}"
    if not learnt.is_part_of(shown):
        warn(f"{difference}: its features will differ")
    elif not shown.equals(learnt):
        say(f"{difference}: kernels of the other slices begin at zero")
