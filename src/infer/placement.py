"""Where networks run, and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from src.core.runtime import Runtime


@dataclass(frozen=True)
class Placement:
    """A device, and what forward passes on it are wrapped in."""

    device: torch.device
    autocast: Callable[[], AbstractContextManager]

    @classmethod
    def of(cls, runtime: Runtime) -> "Placement":
        """That of a run."""
        return cls(runtime.device, runtime.autocast)

    @classmethod
    def on_cpu(cls) -> "Placement":
        """In full precision."""
        return cls(torch.device("cpu"), nullcontext)
