"""Retry networks that fail with fewer resources: less memory, full precision, finally the CPU."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch

from src.core.log import warn
from src.core.runtime import Runtime
from src.infer.ensemble import Ensemble, EnsembleSubset, Prediction
from src.infer.organ_finder import ForwardSettings
from src.infer.results import describe_error
from src.infer.stack_sources import LoadedSeries


class SeriesPredictor:
    """Predicts a series with an ensemble, with fallbacks that give the same result.

    If memory runs out, the number of slices per forward pass is halved, down to one; the number that worked
    is kept. If half precision overflows, the series is predicted again in full precision. If a GPU fails
    anyway, the CPU predicts: the ensemble stays there from the start, as a failed GPU may not return it.


    Args:
        ensemble: ensemble on the CPU.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = self._on_cpu = ensemble
        self._settings = {"cpu": ForwardSettings()}  # settings by device type
        self._warned = False

    def use_fastest(self, precision: str, number: int = 0) -> None:
        """Predict on a GPU from now on, if there is one; stay on the CPU if that fails.

        Args:
            precision: see `Precision`; on a CPU fp32 replaces fp16.
            number: number of the GPU.
        """
        if precision == "fp16" and not torch.cuda.is_available():
            warn("there is no GPU: everything is predicted on the CPU, in fp32 instead of fp16")
            precision = "fp32"
        try:
            runtime = Runtime.create(precision, one_process=True)
            if runtime.device.type != "cpu":
                self.ensemble = self._on_cpu.copy_to(torch.device(runtime.device.type, number))
        except Exception as error:  # driver errors, lack of memory
            warn(f"everything is predicted on the CPU, since the GPU cannot be used: {describe_error(error)}")
            return
        self._settings[runtime.device.type] = ForwardSettings(runtime.autocast)

    @classmethod
    def on_all_gpus(cls, ensemble: Ensemble, precision: str) -> "list[SeriesPredictor]":
        """Return a predictor for each GPU, which share the series; without a usable one, that of the CPU.

        Args:
            precision: see `use_fastest`.
        """
        predictors = []
        for number in range(max(1, torch.cuda.device_count())):
            predictor = cls(ensemble)
            predictor.use_fastest(precision, number)
            if not predictors or predictor.ensemble.device.type != "cpu":
                predictors.append(predictor)
        return predictors

    def predict(
        self, series: LoadedSeries, subset: EnsembleSubset, check: Callable[[], None] = lambda: None
    ) -> Prediction:
        """Predict one series.

        Args:
            check: see `ForwardSettings`.

        Raises:
            Exception: all fallbacks failed, or the error does not concern memory, precision or device.
        """
        ensemble, settings = self.ensemble, self._settings[self.ensemble.device.type]
        while True:
            try:
                prediction = ensemble.predict(series, subset, replace(settings, check=check))
            except Exception as error:
                following = self._after(error, ensemble, settings)
                if following is None:
                    raise
                ensemble, settings = following
            else:
                self._remember(ensemble.device.type, settings.slices_at_once)
                return prediction
            # outside of the handler, because its error keeps the tensors of the failed attempt alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _after(
        self, error: Exception, ensemble: Ensemble, settings: ForwardSettings
    ) -> tuple[Ensemble, ForwardSettings] | None:
        """Return ensemble and settings of the next attempt; None if there is none."""
        if isinstance(error, FloatingPointError) and settings.autocast is not nullcontext:
            return ensemble, replace(settings, autocast=nullcontext)
        most = settings.slices_at_once or max(kind.view.slices for kind in ensemble.stack_kinds)
        if _is_out_of_memory(error) and most > 1:
            return ensemble, replace(settings, slices_at_once=most // 2)
        if ensemble is self._on_cpu or not isinstance(error, RuntimeError | ArithmeticError | MemoryError):
            return None
        if not self._warned:
            warn(f"a series is predicted on the CPU, since the GPU cannot: {describe_error(error)}")
            self._warned = True
        return self._on_cpu, self._settings["cpu"]

    def _remember(self, device: str, slices_at_once: int | None) -> None:
        if slices_at_once != self._settings[device].slices_at_once:
            warn(f"memory is short: from now on {slices_at_once} slices pass a network together")
            self._settings[device] = replace(self._settings[device], slices_at_once=slices_at_once)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the CPU's allocator, cuDNN and cuBLAS raise plain RuntimeErrors
    return isinstance(error, RuntimeError) and bool(
        re.search(r"out of memory|allocate memory|not enough memory|ALLOC_FAILED", str(error), re.IGNORECASE)
    )
