"""Sequence heads: shapes, slice weights, padding, and what each sequence model and pooling is for."""

import pytest
import torch

from src.nn.sequence import POOLINGS, SEQUENCES, SequenceHead, SlicePooling


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sequence_head_gives_one_vector_and_weights_that_sum_to_one(sequence, pooling):
    head = SequenceHead(16, hidden=8, sequence=sequence, pooling=pooling)
    pooled, weights, slices = head(torch.randn(3, 7, 16))
    assert pooled.shape == (3, head.width) == (3, 16)
    assert slices.shape == (3, 7, 16)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_sequence_head_padding_does_not_change_the_summary(sequence, pooling):
    head = SequenceHead(16, hidden=8, sequence=sequence, pooling=pooling).eval()
    features = torch.randn(2, 9, 16)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 6:] = True
    padded = head(features, padding)
    alone, whole = head(features[:1, :6]), head(features[1:])
    torch.testing.assert_close(padded.pooled, torch.cat([alone.pooled, whole.pooled]))
    torch.testing.assert_close(padded.weights[0, :6], alone.weights[0])
    assert not padded.weights[0, 6:].any() and not padded.slices[0, 6:].any()
    torch.testing.assert_close(padded.slices[0, :6], alone.slices[0])


def test_slice_pooling_by_max_keeps_a_finding_of_one_slice_that_the_mean_dilutes():
    features = torch.zeros(1, 20, 4)
    features[0, 5] = 1.0
    by_max, weights = SlicePooling(4, "max")(features)
    by_mean, _ = SlicePooling(4, "mean")(features)
    assert by_max.tolist() == [[1.0] * 4] and weights.argmax().item() == 5
    torch.testing.assert_close(by_mean, torch.full((1, 4), 0.05))


def test_slice_pooling_by_attention_learns_the_slice_that_matters():
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


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_sequence_head_gives_slices_the_context_of_the_others(sequence):
    head = SequenceHead(4, hidden=8, sequence=sequence, pooling="mean").eval()
    features = torch.randn(1, 6, 4)
    changed = features.clone()
    changed[0, -1] = torch.randn(4)
    plain, other, turned = (head(each) for each in (features, changed, features.flip(1)))
    is_alone = sequence == "none"
    assert torch.allclose(plain.slices[0, 0], other.slices[0, 0]) == is_alone
    assert torch.allclose(plain.pooled, turned.pooled, atol=1e-5) == is_alone


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_sequence_head_ignores_the_scale_of_the_features(sequence):
    head, features = SequenceHead(16, hidden=8, sequence=sequence).eval(), torch.randn(2, 5, 16)
    torch.testing.assert_close(head(features).pooled, head(100 * features).pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_sequence_head_drops_out_in_training_only(sequence):
    head, features = SequenceHead(16, hidden=8, sequence=sequence, dropout=0.5), torch.randn(2, 5, 16)
    assert not torch.equal(head(features).pooled, head(features).pooled)
    head.eval()
    torch.testing.assert_close(head(features).pooled, head(features).pooled)
