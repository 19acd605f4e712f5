"""Networks that get through: with less memory, in full precision, at last on the CPU."""

import re
from collections.abc import Callable
from dataclasses import replace

import torch

from src.core.log import warn
from src.infer.ensemble import Share
from src.infer.networks import Care, Networks, Prediction
from src.infer.placement import Placement
from src.infer.sources import ReadSeries, describe_error


class CarefulNetworks:
    """Predicts a series, and where that fails tries again in ways that ask for less.

    Where memory runs out, half as many slices pass the networks together, down to one; what helped stays.
    Where half precision gives no numbers, the series is looked at again in full. Where a GPU fails all the
    same, the CPU does it: the networks lie there in any case, so that nothing can go wrong with them then.

    Args:
        load: loads the networks on a device.
    """

    def __init__(self, load: Callable[[Placement], Networks]) -> None:
        self._load = load
        self.networks = self._on_cpu = load(Placement.on_cpu())
        self._cares = {self._on_cpu.placement.device.type: Care(full_precision=True)}
        self._warned = False

    def move(self, place: Callable[[], Placement]) -> None:
        """Take the device and the precision that `place` gives; stay on the CPU where that fails."""
        try:
            placement = place()
            if placement.device.type == "cpu":
                self._on_cpu.placement = placement
            else:
                self.networks = self._load(placement)
        except Exception as error:  # of the driver, of memory, of the disk with the models
            warn(f"everything is predicted on the CPU, since the GPU cannot be used: {describe_error(error)}")
            return
        self._cares[placement.device.type] = Care()

    def predict(
        self, series: ReadSeries, share: Share, check: Callable[[], None] = lambda: None
    ) -> Prediction:
        """Look at a series.

        Args:
            check: see `Effort`; what it raises ends the work.

        Raises:
            Exception: nothing helped, or it is not a matter of memory, precision or device.
        """
        device = self.networks.placement.device.type
        try:
            return self._predict_with_less(self.networks, series, share, check)
        except (RuntimeError, ArithmeticError, MemoryError) as error:
            if device == "cpu":
                raise
            reason = describe_error(error)
        if not self._warned:
            warn(f"a series is predicted on the CPU, since the GPU cannot: {reason}")
            self._warned = True
        return self._predict_with_less(self._on_cpu, series, share, check)

    def _predict_with_less(
        self, networks: Networks, series: ReadSeries, share: Share, check: Callable[[], None]
    ) -> Prediction:
        device = networks.placement.device.type
        care = self._cares[device]
        while True:
            try:
                prediction = networks.predict(series, share, care, check)
            except FloatingPointError:
                if care.full_precision:
                    raise
                care = replace(care, full_precision=True)
                continue
            except Exception as error:
                fewer = (care.slices_at_once or networks.most_slices) // 2
                if not _is_for_want_of_memory(error) or fewer < 1:
                    raise
                care = replace(care, slices_at_once=fewer)
            else:
                self._remember(device, care.slices_at_once)
                return prediction
            # outside of the handler, whose error holds on to the tensors of the failed attempt
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _remember(self, device: str, slices_at_once: int | None) -> None:
        if slices_at_once != self._cares[device].slices_at_once:
            warn(f"memory is short: from now on {slices_at_once} slices pass a network together")
            self._cares[device] = replace(self._cares[device], slices_at_once=slices_at_once)


def _is_for_want_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the CPU's allocator, cuDNN and cuBLAS raise plain errors
    return isinstance(error, RuntimeError) and bool(
        re.search(r"out of memory|allocate memory|not enough memory|ALLOC_FAILED", str(error), re.IGNORECASE)
    )
