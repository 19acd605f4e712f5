"""Losses of the classifier: patients (weighted as in the metric, or the metric itself), slices, organs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.cls.model import probabilities, target_spans
from src.core.runtime import to_device
from src.core.targets import ANY_INJURY_WEIGHT, CLASS_WEIGHTS, INJURIES, TARGETS


class StackLoss(nn.Module):
    """Weighted cross-entropy of each target over the patients of a batch.

    The metric divides a loss by the sum of its weights. Over a small batch that sum is noisy (a batch with
    one positive would count no more than a batch without), so the loss is divided by the mean weight over the
    training set instead: the mean over all batches then equals the metric.

    Args:
        labels: labels of the training patients, 0 or 1, which determine the mean weights.
        kind: `weighted` uses the metric's weights; `metric` adds its any-injury loss; `plain`: no weights.
        smoothing: label smoothing, 0 to 1.
        targets: targets of the classifier, a subset of `TARGETS`.

    Raises:
        ValueError: `metric` without all targets.
    """

    def __init__(
        self,
        labels: pd.DataFrame,
        kind: str = "weighted",
        smoothing: float = 0.0,
        targets: Sequence[str] = tuple(TARGETS),
    ) -> None:
        super().__init__()
        if kind == "metric" and len(targets) < len(TARGETS):
            raise ValueError("the metric as a loss needs all targets")
        self.kind, self.smoothing, self.targets = kind, smoothing, tuple(targets)
        weights, means = [], []
        for target in self.targets:
            columns = list(TARGETS[target])
            of_classes = np.array([1.0 if kind == "plain" else CLASS_WEIGHTS[name] for name in columns])
            weights.append(torch.tensor(of_classes, dtype=torch.float32))
            means.append(float((labels[columns].to_numpy() @ of_classes).mean()))
        share = float(labels["any_injury"].mean())
        self.register_buffer("weights", torch.cat(weights))
        self.register_buffer("mean_weights", torch.tensor(means, dtype=torch.float32))
        self.any_mean_weight = 1 + (ANY_INJURY_WEIGHT - 1) * share

    def forward(self, logits: Tensor, targets: Tensor, importance: Tensor | None = None) -> Tensor:
        """Return the loss of each target, then of any injury for `metric`: (5,) or (6,), to be averaged.

        Args:
            logits: (B, columns) of the classifier's targets.
            targets: (B, 14) of `LABEL_COLUMNS` in 0..1; fractions if patients are mixed.
            importance: (B,) weight of each patient, 1 where None.
        """
        importance = torch.ones_like(targets[:, 0]) if importance is None else importance
        in_logits, in_labels = target_spans(self.targets), target_spans()
        losses = []
        for target, mean_weight in zip(self.targets, self.mean_weights, strict=True):
            log_shares = F.log_softmax(logits[:, in_logits[target]].float(), dim=1)
            weighted = targets[:, in_labels[target]].float() * self.weights[in_logits[target]]  # (B, classes)
            loss = -(1 - self.smoothing) * (weighted * log_shares).sum(dim=1)
            if self.smoothing:
                loss = loss - self.smoothing * weighted.sum(dim=1) * log_shares.mean(dim=1)
            losses.append((importance * loss).mean() / mean_weight)
        if self.kind == "metric":
            losses.append((importance * self._any_injury(logits, targets[:, -1].float())).mean())
        return torch.stack(losses)

    def _any_injury(self, logits: Tensor, injured: Tensor) -> Tensor:
        """Loss of each patient, (B,): the metric uses the target with the highest injury probability."""
        shares = probabilities(logits, self.targets)
        healthy = torch.stack([shares[:, span.start] for span in target_spans(self.targets).values()], dim=1)
        least = healthy.min(dim=1).values.clamp(1e-6, 1 - 1e-6)
        loss = -(ANY_INJURY_WEIGHT * injured * torch.log1p(-least) + (1 - injured) * least.log())
        return loss / self.any_mean_weight


def slice_loss(slice_logits: Tensor, targets: Tensor, injuries: Sequence[str] = INJURIES) -> Tensor:
    """Cross-entropy of each injury in each slice, weighted per injury as in the metric.

    Args:
        slice_logits: (B, T, injuries).
        targets: (B, T, 8) of `INJURIES` in 0..1, NaN where missing.
        injuries: injuries of the logits.

    Returns:
        Mean over all targets that are not missing, () per process; 0 without any.
    """
    # not by a list as index, which would be copied to the device
    targets = torch.stack([targets[..., INJURIES.index(name)] for name in injuries], dim=-1)
    known = ~targets.isnan()
    wanted = torch.where(known, targets, 0.0)
    weights = to_device(torch.tensor([CLASS_WEIGHTS[name] for name in injuries]), targets.device)
    losses = F.binary_cross_entropy_with_logits(slice_logits.float(), wanted, reduction="none")
    losses = losses * (1 + wanted * (weights - 1))
    return (losses * known).sum() / known.sum().clamp(min=1)


def organ_loss(organ_logits: Tensor, organs: Tensor, is_known: Tensor) -> Tensor:
    """Mean cross-entropy of the decoded slices with organ maps, () per process.

    Args:
        organ_logits: (K, classes, H, W).
        organs: uint8 (K, H, W).
        is_known: bool (K,); False for padding and for series without masks.
    """
    losses = F.cross_entropy(organ_logits.float(), organs.long(), reduction="none").mean(dim=(1, 2))
    return (losses * is_known).sum() / is_known.sum().clamp(min=1)
