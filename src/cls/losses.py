"""The competition's weights in the training loss."""

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from src.cls.model import group_slices
from src.core.targets import CLASS_WEIGHTS, COLUMNS


class MetricWeightedLoss(nn.Module):
    """Mean over the five targets of the cross-entropy, each patient weighted as in the metric.

    The metric divides a loss by the sum of its weights. Over a small batch that sum is noisy (a batch
    with the one positive would count no more than a batch without), so the mean weight over the training set
    stands in: batches then add up to the metric's own value.

    Args:
        labels: the training patients' labels with the 13 columns, 0 or 1, to take the mean weights from.
        smoothing: label smoothing, 0 to 1.

    Shape:
        logits (B, 13), targets (B, 13) in 0..1 -> total (), and the loss of each target (5,), detached.
    """

    def __init__(self, labels: pd.DataFrame, smoothing: float = 0.0):
        super().__init__()
        weights = np.array([CLASS_WEIGHTS[column] for column in COLUMNS])
        mean_weights = [
            float((labels[list(COLUMNS[span])].to_numpy() @ weights[span]).mean())
            for span in group_slices().values()
        ]
        self.smoothing = smoothing
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.register_buffer("mean_weights", torch.tensor(mean_weights, dtype=torch.float32))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        losses = []
        for span, mean_weight in zip(group_slices().values(), self.mean_weights, strict=True):
            group_targets, group_weights = targets[:, span].float(), self.weights[span]
            sample_weights = group_targets @ group_weights  # (B,), of the true class, before smoothing
            smoothed = group_targets * (1 - self.smoothing) + self.smoothing / group_targets.shape[1]
            entropy = -(smoothed * functional.log_softmax(logits[:, span].float(), dim=1)).sum(dim=1)
            losses.append((sample_weights * entropy).mean() / mean_weight)
        stacked = torch.stack(losses)
        return stacked.mean(), stacked.detach()
