"""The CNN-LSTM: shapes, probabilities, and the metric's weights in its loss."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from src.cls.losses import MetricWeightedLoss
from src.cls.model import (
    ClassifierSpec,
    TraumaClassifier,
    group_slices,
    load_classifier,
    predict_stack,
    probabilities,
    save_classifier,
)
from src.core.targets import COLUMNS, GROUPS
from src.score.metric import score
from src.score.prior import weight_aware_prior

SPEC = ClassifierSpec(
    backbone="test_efficientnet",
    windows=("soft", "organ"),
    size=48,
    crop=32,
    slices=5,
    mean=(0.5, 0.5),
    std=(0.25, 0.25),
    hidden=8,
    prior={column: 1 / 2 if len(names) == 2 else 1 / 3 for names in GROUPS.values() for column in names},
)


def draw_labels(patients: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    columns = {}
    for names in GROUPS.values():
        truth = rng.integers(0, len(names), patients)
        columns |= {name: (truth == index).astype(int) for index, name in enumerate(names)}
    frame = pd.DataFrame(columns)
    healthy = frame[[names[0] for names in GROUPS.values()]]
    return frame.assign(patient_id=[str(i) for i in range(patients)], any_injury=1 - healthy.min(axis=1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TraumaClassifier(SPEC).eval()


def stacks(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 5, 2, 32, 32), dtype=torch.uint8, generator=generator)


def test_a_stack_gives_probabilities_that_sum_to_one_in_every_target(model):
    with torch.inference_mode():
        predicted = probabilities(model(stacks()))
    assert predicted.shape == (2, 13)
    for span in group_slices().values():
        torch.testing.assert_close(predicted[:, span].sum(dim=1), torch.ones(2))


def test_every_target_and_the_encoder_get_a_gradient(model):
    targets = torch.tensor(draw_labels(2)[list(COLUMNS)].to_numpy())
    total, parts = MetricWeightedLoss(draw_labels(50))(model(stacks()), targets)
    total.backward()
    assert parts.shape == (5,) and (parts > 0).all()
    assert (model.classifier.weight.grad.abs().sum(dim=1) > 0).all(), "a column is never trained"
    assert next(model.encoder.parameters()).grad.abs().sum() > 0


def test_the_loss_over_all_patients_is_the_metric_without_any_injury():
    labels, logits = draw_labels(40), torch.randn(40, 13, generator=torch.Generator().manual_seed(0))
    total, parts = MetricWeightedLoss(labels)(logits, torch.tensor(labels[list(COLUMNS)].to_numpy()))
    predicted = pd.DataFrame(probabilities(logits.double()).numpy(), columns=list(COLUMNS))
    official = score(labels, predicted.assign(patient_id=labels.patient_id)).losses
    for value, group in zip(parts, GROUPS, strict=True):
        assert value.item() == pytest.approx(official[group], rel=1e-5)
    assert total.item() == pytest.approx(np.mean([official[group] for group in GROUPS]), rel=1e-5)


def test_batches_of_any_split_average_to_the_whole():
    labels, logits = draw_labels(12), torch.randn(12, 13)
    targets, loss = torch.tensor(labels[list(COLUMNS)].to_numpy()), MetricWeightedLoss(labels)
    whole = loss(logits, targets)[0]
    parts = torch.stack([loss(logits[i : i + 3], targets[i : i + 3])[0] for i in range(0, 12, 3)])
    torch.testing.assert_close(parts.mean(), whole)


def test_smoothing_changes_the_loss_of_a_confident_answer():
    labels = draw_labels(8)
    targets = torch.tensor(labels[list(COLUMNS)].to_numpy())
    confident = (targets * 20.0).float()
    assert MetricWeightedLoss(labels)(confident, targets)[0] < 1e-4
    assert MetricWeightedLoss(labels, smoothing=0.1)(confident, targets)[0] > 0.5


def test_training_begins_at_the_prior():
    prior = weight_aware_prior(draw_labels(30)).to_dict()
    model = TraumaClassifier(replace(SPEC, prior=prior)).eval()
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.inference_mode():
        predicted = probabilities(model(stacks(1)))[0]
    torch.testing.assert_close(predicted, torch.tensor([prior[column] for column in COLUMNS]))


def test_flips_are_averaged(model):
    images = stacks(1)
    single = [predict_stack(model, images, (flip,)) for flip in ("none", "h", "v", "hv")]
    torch.testing.assert_close(
        predict_stack(model, images, ("none", "h", "v", "hv")), torch.stack(single).mean(0)
    )
    torch.testing.assert_close(single[1], predict_stack(model, images.flip(-1), ("none",)))
    assert not torch.allclose(single[0], single[1])


def test_a_saved_model_predicts_the_same(model, tmp_path):
    save_classifier(tmp_path / "model.safetensors", model, SPEC, fold=3)
    loaded, spec = load_classifier(tmp_path / "model.safetensors")
    assert spec == SPEC
    with torch.inference_mode():
        torch.testing.assert_close(loaded(stacks()), model(stacks()), rtol=0, atol=1e-5)
