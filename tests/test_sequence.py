"""Sequence heads: shapes, slice weights, and what each pooling is for."""

import pytest
import torch

from src.nn.sequence import POOLINGS, RECURRENT, RecurrentHead, SlicePooling


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_stack_becomes_one_vector_and_weights_that_sum_to_one(kind, pooling):
    head = RecurrentHead(16, hidden=8, kind=kind, pooling=pooling)
    pooled, weights = head(torch.randn(3, 7, 16))
    assert pooled.shape == (3, head.width) == (3, 16)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


def test_max_pooling_keeps_a_finding_of_one_slice_that_the_mean_dilutes():
    features = torch.zeros(1, 20, 4)
    features[0, 5] = 1.0
    by_max, weights = SlicePooling(4, "max")(features)
    by_mean, _ = SlicePooling(4, "mean")(features)
    assert by_max.tolist() == [[1.0] * 4] and weights.argmax().item() == 5
    torch.testing.assert_close(by_mean, torch.full((1, 4), 0.05))


def test_attention_learns_which_slice_matters():
    torch.manual_seed(0)
    pooling = SlicePooling(4, "attention")
    features = torch.zeros(1, 10, 4)
    features[0, 3] = 1.0
    optimizer = torch.optim.Adam(pooling.parameters(), lr=0.05)
    for _ in range(60):
        pooled, weights = pooling(features)
        optimizer.zero_grad()
        (1 - pooled).sum().backward()
        optimizer.step()
    assert weights.argmax().item() == 3 and weights.max() > 0.5


def test_the_recurrent_layer_sees_both_directions():
    torch.manual_seed(0)
    head = RecurrentHead(4, hidden=8, pooling="mean").eval()
    features = torch.randn(1, 6, 4)
    changed = features.clone()
    changed[0, -1] += 1.0
    before, _ = head.recurrent(features)
    after, _ = head.recurrent(changed)
    assert not torch.allclose(before[0, 0], after[0, 0]), "the first slice must feel a change of the last"


def test_the_scale_of_the_features_does_not_matter():
    torch.manual_seed(0)
    head, features = RecurrentHead(16, hidden=8).eval(), torch.randn(2, 5, 16)
    torch.testing.assert_close(head(features)[0], head(100 * features)[0], rtol=1e-3, atol=1e-4)
