"""Sequence heads: slice features (B, T, D) to one vector a stack."""

import torch
from torch import nn

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}
POOLINGS = ("max", "mean", "attention")


class SlicePooling(nn.Module):
    """(B, T, D) -> (B, D), and the weight of each slice (B, T), which sums to 1.

    `max` takes each feature from its strongest slice (an injury on few slices stays visible), `mean`
    averages, `attention` learns a weight per slice (Ilse et al. 2018, arXiv 1802.04712, eq. 8, no gate).
    """

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.scorer = nn.Sequential(nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 1))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch, slices, width = features.shape
        if self.kind == "attention":
            weights = self.scorer(features).squeeze(-1).softmax(dim=1)  # (B, T)
            return torch.einsum("bt,btd->bd", weights, features), weights
        if self.kind == "mean":
            return features.mean(dim=1), features.new_full((batch, slices), 1.0 / slices)
        pooled, winners = features.max(dim=1)  # (B, D) each
        counts = torch.zeros_like(features[..., 0]).scatter_add_(1, winners, torch.ones_like(pooled))
        return pooled, counts / width


class RecurrentHead(nn.Module):
    """Bidirectional LSTM or GRU, then pooling: (B, T, D) -> (B, 2 * hidden), slice weights (B, T).

    Features are normalised first, since their scale differs between backbones and one learning rate is to
    suit all.
    """

    def __init__(
        self, width: int, hidden: int = 128, kind: str = "lstm", pooling: str = "max", dropout: float = 0.0
    ):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = RECURRENT[kind](width, hidden, batch_first=True, bidirectional=True)
        self.pooling = SlicePooling(2 * hidden, pooling)
        self.width = 2 * hidden

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sequence, _ = self.recurrent(self.dropout(self.norm(features)))  # (B, T, 2 * hidden)
        return self.pooling(sequence)
