"""Losses of the classifier: agreement with the metric, smoothing, mixed targets, slices, organs."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from src.cls.losses import StackLoss, organ_loss, slice_loss
from src.cls.model import probabilities
from src.core.targets import CLASS_WEIGHTS, COLUMNS, INJURIES, LABEL_COLUMNS, TARGETS
from src.score.metric import LOSSES, score
from tests.helpers.score_frames import draw_labels

LABELS = draw_labels(40, injury_rate=0.5)
TRUTH = torch.tensor(LABELS[list(LABEL_COLUMNS)].to_numpy(), dtype=torch.float32)


@pytest.fixture
def logits():
    return torch.randn(40, 13, generator=torch.Generator().manual_seed(0))


def official(logits: torch.Tensor) -> dict[str, float]:
    predicted = pd.DataFrame(probabilities(logits.double()).numpy(), columns=list(COLUMNS))
    return score(LABELS, predicted.assign(patient_id=LABELS.patient_id)).losses


def test_stack_loss_weighted_is_the_metric_without_any_injury(logits):
    losses = StackLoss(LABELS)(logits, TRUTH)
    assert losses.tolist() == pytest.approx([official(logits)[target] for target in TARGETS], rel=1e-5)


def test_stack_loss_metric_is_the_metric(logits):
    losses = StackLoss(LABELS, "metric")(logits, TRUTH)
    assert losses.tolist() == pytest.approx([official(logits)[name] for name in LOSSES], rel=1e-5)


def test_stack_loss_any_injury_trains_the_most_injured_target_only(logits):
    logits = logits.requires_grad_()
    StackLoss(LABELS, "metric")(logits, TRUTH)[-1].backward()
    touched = [(logits.grad[:, span].abs().sum(dim=1) > 0) for span in _spans()]
    assert (torch.stack(touched).sum(dim=0) == 1).all()


def test_stack_loss_plain_is_cross_entropy(logits):
    losses = StackLoss(LABELS, "plain")(logits, TRUTH)
    for loss, span, names in zip(losses, _spans(), TARGETS.values(), strict=True):
        truth = torch.tensor(LABELS[list(names)].to_numpy().argmax(1))
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[:, span], truth))


def test_stack_loss_metric_needs_all_targets():
    with pytest.raises(ValueError, match="all targets"):
        StackLoss(LABELS, "metric", targets=("liver",))


def test_stack_loss_of_one_target_is_the_same_alone(logits):
    alone = StackLoss(LABELS, targets=("liver",))(logits[:, _spans()[3]], TRUTH)
    torch.testing.assert_close(alone[0], StackLoss(LABELS)(logits, TRUTH)[3])


@pytest.mark.parametrize("kind", ["weighted", "metric"])
def test_stack_loss_is_the_mean_over_batches(logits, kind):
    loss = StackLoss(LABELS, kind)
    parts = torch.stack([loss(logits[i : i + 8], TRUTH[i : i + 8]) for i in range(0, 40, 8)])
    torch.testing.assert_close(parts.mean(0), loss(logits, TRUTH))


def test_stack_loss_smoothing_penalises_a_confident_prediction():
    confident = TRUTH[:, :13] * 20.0
    assert StackLoss(LABELS)(confident, TRUTH).mean() < 1e-4
    assert StackLoss(LABELS, smoothing=0.1)(confident, TRUTH).mean() > 0.5


@pytest.mark.parametrize("kind", ["weighted", "metric", "plain"])
def test_stack_loss_is_linear_in_mixed_targets(logits, kind):
    loss = StackLoss(LABELS, kind, smoothing=0.1)
    same = logits[:1].expand(2, -1)
    single = [loss(same[:1], TRUTH[[place]]) for place in (0, 1)]
    mixed = loss(same[:1], 0.3 * TRUTH[[0]] + 0.7 * TRUTH[[1]])
    torch.testing.assert_close(mixed, 0.3 * single[0] + 0.7 * single[1])


def test_stack_loss_importance_weighs_patients(logits):
    loss = StackLoss(LABELS)
    importance = torch.zeros(40)
    importance[:10] = 4.0
    torch.testing.assert_close(loss(logits, TRUTH, importance), loss(logits[:10], TRUTH[:10]))


def test_slice_loss_ignores_missing_targets():
    slice_logits = torch.randn(2, 4, 8, requires_grad=True)
    targets = torch.full((2, 4, 8), torch.nan)
    targets[0, 1, 2] = 1.0
    loss = slice_loss(slice_logits, targets)
    loss.backward()
    expected = CLASS_WEIGHTS[INJURIES[2]] * torch.nn.functional.softplus(-slice_logits[0, 1, 2])
    torch.testing.assert_close(loss, expected)
    assert (slice_logits.grad != 0).sum() == 1
    assert slice_loss(slice_logits, torch.full((2, 4, 8), torch.nan)) == 0


def test_slice_loss_weighs_slices_without_injury_by_one():
    loss = slice_loss(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8))
    assert loss.item() == pytest.approx(np.log(2))


def test_organ_loss_ignores_series_without_masks():
    organ_logits = torch.randn(3, 5, 4, 4)
    organs = torch.randint(0, 5, (3, 4, 4), dtype=torch.uint8)
    only = organ_loss(organ_logits, organs, torch.tensor([False, True, False]))
    expected = torch.nn.functional.cross_entropy(organ_logits[1:2], organs[1:2].long())
    torch.testing.assert_close(only, expected)
    assert organ_loss(organ_logits, organs, torch.zeros(3, dtype=torch.bool)) == 0


def _spans() -> list[slice]:
    starts = np.cumsum([0, *map(len, TARGETS.values())])
    return [slice(a, b) for a, b in pairwise(starts)]
