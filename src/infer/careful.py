"""Networks that get through: with less memory, in full precision, at last on the CPU."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch

from src.core.log import warn
from src.infer.ensemble import Share
from src.infer.networks import Answer, Care, Networks
from src.infer.placement import Placement
from src.infer.sources import ReadSeries, describe_error


class CarefulNetworks:
    """Predicts a series, and where that fails tries again in ways that ask for less.

    Where memory runs out, half as many slices pass the networks together, down to one; what helped stays.
    Where half precision gives no numbers, the series is looked at again in fp32. Where a GPU fails all the
    same, the series is looked at on the CPU, by networks that are loaded there when first needed.

    Args:
        load: loads the networks on a device.
    """

    def __init__(self, load: Callable[[Placement], Networks], placement: Placement) -> None:
        self._load = load
        self.networks = load(placement)
        self._on_cpu: Networks | None = None
        self._care = Care()

    def predict(self, series: ReadSeries, share: Share) -> Answer:
        """Probabilities of a series.

        Raises:
            Exception: nothing helped, or it is not a matter of memory or device.
        """
        try:
            return self._predict_with_less(series, share)
        except Exception as error:
            if self.networks.placement.device.type == "cpu" or not isinstance(error, RuntimeError):
                raise
            reason = describe_error(error)
        if self._on_cpu is None:
            warn(f"a series is predicted on the CPU, since the GPU cannot: {reason}")
            self._on_cpu = self._load(Placement.on_cpu())
        return self._on_cpu.predict(series, share, Care(full_precision=True))

    def _predict_with_less(self, series: ReadSeries, share: Share) -> Answer:
        care = self._care
        while True:
            try:
                answer = self.networks.predict(series, share, care)
            except FloatingPointError:
                if care.full_precision:
                    raise
                care = replace(care, full_precision=True)
                continue
            except Exception as error:
                fewer = (care.slices_at_once or self.networks.most_slices) // 2
                if not _is_for_want_of_memory(error) or fewer < 1:
                    raise
                care = replace(care, slices_at_once=fewer)
            else:
                if care.slices_at_once != self._care.slices_at_once:
                    warn(f"memory is short: from now on {care.slices_at_once} slices pass a network together")
                    self._care = replace(self._care, slices_at_once=care.slices_at_once)
                return answer
            # outside of the handler, whose error holds on to the tensors of the failed attempt
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _is_for_want_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the CPU's allocator, cuDNN and cuBLAS raise plain errors
    return isinstance(error, RuntimeError) and bool(
        re.search(r"out of memory|allocate memory|not enough memory|ALLOC_FAILED", str(error), re.IGNORECASE)
    )
