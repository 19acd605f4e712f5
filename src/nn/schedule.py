"""Learning rates as plain functions of the optimiser's step."""

import math


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, base_lr: float, final_lr: float = 0.0
) -> float:
    """Linear rise to `base_lr` over `warmup_steps`, then half a cosine to `final_lr`; never rises again.

    Args:
        step: the optimiser's step, from 0.
        total_steps: steps of the whole run; later steps keep `final_lr`.
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_lr + (base_lr - final_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def set_lr(optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own `lr_scale` (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
