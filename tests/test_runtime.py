"""The precision that is chosen where nobody chooses one."""

import pytest
import torch

from src.core.runtime import fastest_precision


@pytest.mark.parametrize(("in_hardware", "expected"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp16(monkeypatch, in_hardware, expected):
    """torch counts emulation as support unless it is asked not to."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: in_hardware or including_emulation
    )
    assert fastest_precision(on_gpu=True) == expected


def test_a_cpu_computes_in_full():
    assert fastest_precision(on_gpu=False) == "fp32"
