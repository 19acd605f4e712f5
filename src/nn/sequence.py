"""Sequence heads: slice features (B, T, D) to one vector per stack."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU}
SEQUENCES = (*RECURRENT, "transformer", "none")
POOLINGS = ("max", "mean", "attention")


class StackSummary(NamedTuple):
    """Output of a sequence head."""

    pooled: Tensor
    """(B, W)"""
    weights: Tensor
    """(B, T) weight of each slice in `pooled`; sums to 1, 0 in padding"""
    slices: Tensor
    """(B, T, W) features of each slice after the sequence model; 0 in padding"""


class SequenceHead(nn.Module):
    """A sequence model over the slices, then pooling. W is `width`, twice `hidden`.

    Args:
        features: D, width of the slice features.
        hidden: width of the sequence model per direction; transformer and none have twice this width.
        sequence: lstm or gru (bidirectional), transformer (two layers), or none: each slice alone.
        pooling: max, mean or attention.
        dropout: dropout of the features, and inside the transformer.
        normalise: apply LayerNorm to the features of each slice, because their scale differs between
            backbones and one learning rate should suit all. Not for features whose magnitude is informative.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 128,
        sequence: str = "lstm",
        pooling: str = "max",
        dropout: float = 0.0,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if sequence not in SEQUENCES:
            raise ValueError(f"no sequence model {sequence!r}; there are {', '.join(SEQUENCES)}")
        self.width = 2 * hidden
        self.norm = nn.LayerNorm(features) if normalise else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        if sequence in RECURRENT:
            self.model: nn.Module = _Recurrent(features, hidden, sequence)
        elif sequence == "transformer":
            self.model = _Transformer(features, self.width, dropout)
        else:
            self.model = _PerSlice(features, self.width)
        self.pooling = SlicePooling(self.width, pooling)

    def forward(self, features: Tensor, padding: Tensor | None = None) -> StackSummary:
        """Summarise features (B, T, D).

        Args:
            padding: bool (B, T), True after the last slice; it does not affect the result.
        """
        slices = self.model(self.dropout(self.norm(features)), padding)
        if padding is not None:
            slices = slices.masked_fill(padding[..., None], 0.0)
        pooled, weights = self.pooling(slices, padding)
        return StackSummary(pooled, weights, slices)


class SlicePooling(nn.Module):
    """Pools (B, T, W) to (B, W), and returns the weight of each slice (B, T), which sums to 1.

    `max` takes each feature from its strongest slice (an injury on few slices stays visible), `mean`
    averages, `attention` learns a weight per slice (Ilse et al. 2018, arXiv 1802.04712, eq. 8, no gate).
    """

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"no pooling {kind!r}; there are {', '.join(POOLINGS)}")
        self.kind = kind
        if kind == "attention":
            self.scorer = nn.Sequential(nn.Linear(width, width // 2), nn.Tanh(), nn.Linear(width // 2, 1))

    def forward(self, features: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        width = features.shape[-1]
        if self.kind == "max":
            if padding is not None:
                features = features.masked_fill(padding[..., None], -math.inf)
            pooled, winners = features.max(dim=1)  # (B, W) each
            counts = torch.zeros_like(features[..., 0]).scatter_add_(1, winners, torch.ones_like(pooled))
            return pooled, counts / width
        scores = features.new_zeros(features.shape[:2])
        if self.kind == "attention":
            scores = self.scorer(features).squeeze(-1)
        if padding is not None:
            scores = scores.masked_fill(padding, -math.inf)
        weights = scores.softmax(dim=1)  # (B, T), equal ones for the mean
        return torch.einsum("bt,btd->bd", weights, features), weights


class _Recurrent(nn.Module):
    def __init__(self, features: int, hidden: int, kind: str) -> None:
        super().__init__()
        self.cells = RECURRENT[kind](features, hidden, batch_first=True, bidirectional=True)

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        if padding is None:
            return self.cells(features)[0]
        lengths = (~padding).sum(dim=1).cpu()  # waits for the device: shapes of packed stacks depend on them
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.cells(packed)[0], batch_first=True, total_length=features.shape[1])[0]


class _Transformer(nn.Module):
    """Two pre-norm layers (Vaswani et al. 2017, arXiv 1706.03762, with its sinusoidal positions)."""

    def __init__(self, features: int, width: int, dropout: float) -> None:
        super().__init__()
        heads = next((count for count in (8, 4, 2) if width % count == 0 and width // count >= 8), 1)
        self.enter = nn.Linear(features, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=2 * width, dropout=dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        tokens = self.enter(features)
        tokens = tokens + _sine_positions(*tokens.shape[1:], tokens.device).to(tokens.dtype)
        return self.layers(tokens, src_key_padding_mask=padding)


class _PerSlice(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(features, width), nn.GELU())

    def forward(self, features: Tensor, padding: Tensor | None) -> Tensor:
        return self.layer(features)


def _sine_positions(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width): sines and cosines of the position, with wavelengths from 2 pi to 10,000 times that."""
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000) / width))
    angles = torch.arange(length, device=device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
