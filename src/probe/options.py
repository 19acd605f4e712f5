"""Options that name the network to measure: a run, or an encoder alone."""

from dataclasses import dataclass
from pathlib import Path

from src.core.config import FirstWeights, check_range

TILE = 64


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """A finished run, or an encoder with its input."""

    run: Path | None = None
    """Folder of a train_voco.py run, with last.pt: measures its teacher, also by its projection head and in
    its own geometry."""

    encoder: FirstWeights | None = None
    """Instead of --run: an encoder.safetensors, a published checkpoint, imagenet, package (as in
    --first-weights of train_voco.py), or none for random weights, drawn from --seed."""

    backbone: str | None = None
    """Backbone of --encoder; default: the one that an encoder.safetensors records."""

    windows: tuple[str, ...] = ()
    """Windows of the input of --encoder; default: those that an encoder.safetensors records, or soft."""

    tile: int = TILE
    """Side of the tiles of --encoder in pixels; a 3D backbone takes as many slices."""

    seed: int = 0
    """Seed of crops, tiles, halves and resamples; compare networks with the same seed."""

    def __post_init__(self) -> None:
        check_range(self, "seed", at_least=0)
        check_range(self, "tile", at_least=1)
        if (self.run is None) == (self.encoder is None):
            raise ValueError("give either --run or --encoder")
        for name in ("backbone", "windows", "tile") if self.run else ():
            if getattr(self, name) != getattr(NetworkOptions, name):
                raise ValueError(f"option --{name} is for --encoder: a run has its own")
