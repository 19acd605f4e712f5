"""The CNN-LSTM: shapes, probabilities, prediction, and its file."""

from dataclasses import replace

import pytest
import torch

from src.cls.losses import StackLoss
from src.cls.model import (
    ClassifierSpec,
    TraumaClassifier,
    load_classifier,
    predict_stack,
    probabilities,
    save_classifier,
    target_spans,
)
from src.cls.views import StackView
from src.core.targets import CLASS_WEIGHTS, COLUMNS, LABEL_COLUMNS, TARGETS
from src.score.prior import weight_aware_prior
from tests.helpers.score_frames import draw_labels

VIEW = StackView(windows=("soft", "organ"), size=48, crop=32, slices=5)
SPEC = ClassifierSpec(
    backbone="test_efficientnet",
    view=VIEW,
    mean=(0.5, 0.5),
    std=(0.25, 0.25),
    hidden=8,
    prior={column: 1 / 2 if len(names) == 2 else 1 / 3 for names in TARGETS.values() for column in names},
)
UNPADDED = torch.zeros(2, 5, dtype=torch.bool)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TraumaClassifier(SPEC).eval()


def stacks(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 5, 2, 32, 32), dtype=torch.uint8, generator=generator)


def test_probabilities_sum_to_one_in_every_target(model):
    with torch.inference_mode():
        predicted = probabilities(model(stacks()).logits)
    assert predicted.shape == (2, 13)
    for span in target_spans().values():
        torch.testing.assert_close(predicted[:, span].sum(dim=1), torch.ones(2))


def test_trauma_classifier_trains_every_target_and_the_encoder(model):
    labels = draw_labels(50, injury_rate=0.5)
    targets = torch.tensor(labels[list(LABEL_COLUMNS)].to_numpy())[:2]
    losses = StackLoss(labels)(model(stacks()).logits, targets)
    losses.mean().backward()
    assert losses.shape == (5,) and (losses > 0).all()
    assert (model.classifier.weight.grad.abs().sum(dim=1) > 0).all(), "a column is never trained"
    assert next(model.encoder.parameters()).grad.abs().sum() > 0


def test_predict_stack_of_one_target_gives_its_columns():
    torch.manual_seed(0)
    spec = replace(SPEC, targets=("spleen",))
    model = TraumaClassifier(spec).eval()
    predicted = predict_stack(model, spec, stacks(), UNPADDED, ("none",))
    assert predicted.shape == (2, 3) and spec.columns == TARGETS["spleen"]
    torch.testing.assert_close(predicted.sum(dim=1), torch.ones(2))


def test_trauma_classifier_has_slice_and_organ_heads_where_trained():
    torch.manual_seed(0)
    model = TraumaClassifier(replace(SPEC, predicts_slices=True), with_decoder=True)
    answer = model(stacks(), None, torch.tensor([0, 7, 9]))
    assert answer.slice_logits.shape == (2, 5, 8) and answer.weights.shape == (2, 5)
    assert answer.organ_logits.shape == (3, 5, 32, 32)
    plain = TraumaClassifier(SPEC)(stacks())
    assert plain.slice_logits is None and plain.organ_logits is None


def test_trauma_classifier_logits_do_not_depend_on_the_decoder():
    torch.manual_seed(0)
    model = TraumaClassifier(SPEC, with_decoder=True).eval()
    with torch.inference_mode():
        plain, decoding = model(stacks()), model(stacks(), None, torch.tensor([3]))
    torch.testing.assert_close(plain.logits, decoding.logits)


def test_trauma_classifier_normalises_windows_but_not_masks():
    view = replace(VIEW, neighbours=3, masks="each")
    model = TraumaClassifier(replace(SPEC, view=view, mean=(0.4, 0.5), std=(0.2, 0.25)))
    assert model.mean.flatten().tolist() == pytest.approx([0.4, 0.5] * 3 + [0.0] * 4)
    assert model.std.flatten().tolist() == pytest.approx([0.2, 0.25] * 3 + [1.0] * 4)
    assert model(torch.zeros(1, 5, 10, 32, 32, dtype=torch.uint8)).logits.shape == (1, 13)


@pytest.mark.parametrize("padding", [None, UNPADDED])
@pytest.mark.parametrize("decoded", [None, torch.tensor([2, 8, 9])])
def test_trauma_classifier_in_parts_has_the_gradient_of_the_whole(padding, decoded):
    """In double precision, with a backbone that does not normalise by the batch; 10 slices as 4, 3 and 3."""
    images = stacks()
    found = []
    for slices_at_once in (None, 4):
        torch.manual_seed(0)
        model = TraumaClassifier(replace(SPEC, backbone="test_convnext"), with_decoder=True).double().train()
        model.normalise = lambda flat: flat.double() / 255
        output = model(images, padding, decoded, slices_at_once)
        loss = output.logits.square().sum()
        if decoded is None:
            del model.decoder
        else:
            loss = loss + output.organ_logits.square().mean()
        loss.backward()
        found.append((output.logits, {name: value.grad for name, value in model.named_parameters()}))
    (logits, expected), (in_parts, gradients) = found
    torch.testing.assert_close(in_parts, logits)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-6, atol=1e-12)


def test_trauma_classifier_in_parts_counts_every_slice_once_in_running_statistics():
    images, states = stacks(), []
    for with_graph in (True, False):
        torch.manual_seed(0)
        model = TraumaClassifier(SPEC).train()
        with torch.set_grad_enabled(with_graph):
            output = model(images, slices_at_once=5)
        if with_graph:
            output.logits.sum().backward()
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=0)


def test_trauma_classifier_starts_at_the_prior():
    prior = weight_aware_prior(draw_labels(30, injury_rate=0.5)).to_dict()
    model = TraumaClassifier(replace(SPEC, prior=prior)).eval()
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.inference_mode():
        predicted = probabilities(model(stacks(1)).logits)[0]
    torch.testing.assert_close(predicted, torch.tensor([prior[column] for column in COLUMNS]))


def test_predict_stack_averages_flips(model):
    images, padding = stacks(1), UNPADDED[:1]
    single = [predict_stack(model, SPEC, images, padding, (flip,)) for flip in ("none", "h", "v", "hv")]
    every = predict_stack(model, SPEC, images, padding, ("none", "h", "v", "hv"))
    torch.testing.assert_close(every, torch.stack(single).mean(0))
    torch.testing.assert_close(single[1], predict_stack(model, SPEC, images.flip(-1), padding, ("none",)))
    assert not torch.allclose(single[0], single[1])


def test_predict_stack_uses_padding_of_padded_views_only(model):
    images, padding = stacks(), UNPADDED.clone()
    padding[0, 3:] = True
    spec = replace(SPEC, view=replace(VIEW, spacing_mm=5.0))
    padded, whole = (predict_stack(model, each, images, padding, ("none",)) for each in (spec, SPEC))
    assert not torch.allclose(padded[0], whole[0])
    torch.testing.assert_close(padded[1], whole[1])


def test_predict_stack_multiplies_by_class_weights(model):
    spec = replace(SPEC, reweigh=True)
    plain, weighed = (predict_stack(model, each, stacks(), UNPADDED, ("none",)) for each in (SPEC, spec))
    weights = torch.tensor([CLASS_WEIGHTS[name] for name in COLUMNS])
    expected = plain * weights
    for span in target_spans().values():
        expected[:, span] /= expected[:, span].sum(dim=1, keepdim=True)
    torch.testing.assert_close(weighed, expected)


def test_load_classifier_gives_the_model_that_was_saved(tmp_path):
    torch.manual_seed(0)
    spec = replace(SPEC, predicts_slices=True, sequence="transformer", view=replace(VIEW, z_range="liver"))
    model = TraumaClassifier(spec, with_decoder=True).eval()
    save_classifier(tmp_path / "model.safetensors", model, spec, fold=3)
    loaded, read = load_classifier(tmp_path / "model.safetensors")
    assert read == spec and loaded.decoder is None
    with torch.inference_mode():
        for mine, other in zip(model(stacks())[:3], loaded(stacks())[:3], strict=True):
            torch.testing.assert_close(other, mine, rtol=0, atol=1e-5)
