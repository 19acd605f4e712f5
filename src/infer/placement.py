"""Where networks run, and in which precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from src.core.log import warn
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
    def fastest(cls, precision: str) -> "Placement":
        """The GPU in the given precision; where there is none the CPU, in full instead of in fp16.

        Raises:
            UserError: the program was started in several processes.
            ValueError: the GPU cannot compute in that precision.
            RuntimeError: of its driver.
        """
        if precision == "fp16" and not torch.cuda.is_available():
            warn("there is no GPU: everything is predicted on the CPU, in fp32 instead of fp16")
            precision = "fp32"
        return cls.of(Runtime.create(precision, one_process=True))

    @classmethod
    def on_cpu(cls) -> "Placement":
        """In full precision."""
        return cls(torch.device("cpu"), nullcontext)
