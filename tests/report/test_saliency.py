"""Saliency: the parts sum to the log-odds, and a picture is drawn of a prepared series."""

import numpy as np
import pytest
import torch

from src.cls.dataset import StackBatch
from src.cls.model import ClassifierSpec, TraumaClassifier, predict_stack
from src.cls.views import StackView
from src.core.errors import UserError
from src.data.png import read_png
from src.data.prepared import PreparedDataset
from src.report import saliency
from src.report.saliency import explain
from tests.helpers.infer_runs import train_small


def build(**changes) -> tuple[TraumaClassifier, ClassifierSpec, StackBatch]:
    """A network of random weights, and a stack of noise of which the last slices are padding."""
    torch.manual_seed(1)
    view = StackView(("soft", "wide"), size=48, crop=32, slices=6, neighbours=3, spacing_mm=20.0)
    defaults = {"backbone": "test_efficientnet", "view": view, "mean": (0.5,) * 2, "std": (0.25,) * 2}
    spec = ClassifierSpec(**defaults | {"hidden": 8} | changes)
    view = spec.view
    shape = (view.slices, view.channels, view.crop, view.crop)
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8))
    padding = torch.arange(view.slices) >= 4
    rest = torch.zeros(13), torch.zeros(6, 0), torch.zeros(0, 0, 0, dtype=torch.uint8), torch.tensor(False)
    return TraumaClassifier(spec).eval(), spec, StackBatch(images, padding, *rest)


@pytest.mark.parametrize("sequence", ["lstm", "transformer", "none"])
@pytest.mark.parametrize("pooling", ["max", "attention"])
def test_explain_parts_sum_to_the_difference_from_a_uniform_stack(sequence, pooling):
    model, spec, stack = build(sequence=sequence, pooling=pooling)
    found = explain(model, spec, stack, "liver_high", steps=256)
    assert found.parts.shape[0] == 6 and found.parts.abs().sum() > 1e-3
    assert found.parts.sum().item() == pytest.approx(found.log_odds - found.plain, rel=0.02, abs=1e-4)
    assert (found.parts[4:] == 0).all()  # padding contributes nothing


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("column", ["bowel_injury", "kidney_low"])
def test_explain_log_odds_are_those_of_a_prediction(column, weights):
    model, spec, stack = build(reweigh=weights)
    found = explain(model, spec, stack, column, steps=1)
    predicted = predict_stack(model, spec, stack.images[None], stack.padding[None], ("none",))[0]
    assert 1 / (1 + np.exp(-found.log_odds)) == pytest.approx(predicted[spec.columns.index(column)].item())


def test_explain_refuses_other_columns_and_encoders_without_maps():
    model, spec, stack = build(targets=("liver", "spleen"))
    with pytest.raises(UserError, match=r"the model predicts liver_healthy, .*, not bowel_injury"):
        explain(model, spec, stack, "bowel_injury")
    view = StackView(("soft", "wide"), size=160, crop=160, slices=2)
    with pytest.raises(UserError, match="test_vit3 has no feature maps"):
        explain(*build(backbone="test_vit3", view=view), "liver_low")


@pytest.mark.parametrize("views", ["", "--z-range organs --in-plane liver --masks each --neighbours 3"])
def test_main_draws_a_prepared_series(tiny, tmp_path, capsys, views):
    run = train_small(tiny, tmp_path / "run", views)
    series_id = PreparedDataset.open(tiny.prepared).series.series_id.iloc[0]
    output = tmp_path / "saliency.png"
    given = ["--model", run / "fold0" / "model.safetensors", "--data", tiny.prepared, "--series", series_id]
    more = ["--column", "liver_high", "--output", output, "--slices", 2, "--steps", 4]
    saliency.main([str(word) for word in (*given, *more)])
    picture = read_png(output)
    assert picture.shape[2] == 3 and picture.std() > 10
    assert "liver_high of series" in capsys.readouterr().out
    with pytest.raises(UserError, match="no usable series 0"):
        saliency.main([str(word) for word in (*given[:-1], "0", *more)])
