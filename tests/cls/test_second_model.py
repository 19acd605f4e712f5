"""The network of the second level: where it starts, and its file."""

from dataclasses import replace

import pandas as pd
import torch

from src.cls.second_features import SliceFeatures, ViewFeatures
from src.cls.second_model import (
    SecondLevel,
    SecondSpec,
    load_second_level,
    predict_features,
    save_second_level,
)

SPEC = SecondSpec(features=(3, 2), hidden=8)


def draw_features(count: int = 5) -> SliceFeatures:
    """Noise of two views, and probabilities that sum to 1 in every target."""
    torch.manual_seed(0)
    base = torch.rand(count, 13) + 0.1
    for span in ((0, 2), (2, 4), (4, 7), (7, 10), (10, 13)):
        base[:, slice(*span)] /= base[:, slice(*span)].sum(dim=1, keepdim=True)
    series = pd.DataFrame({"series_id": [str(number) for number in range(count)]})
    views = [
        ViewFeatures(torch.randn(count, slices, width), torch.zeros(count, slices, dtype=torch.bool))
        for slices, width in ((6, 3), (4, 2))
    ]
    return SliceFeatures(series, tuple(views), base)


def test_second_level_starts_at_the_probabilities_of_the_first():
    given = draw_features()
    torch.testing.assert_close(predict_features(SecondLevel(SPEC).eval(), given), given.base)


def test_second_level_uses_every_view():
    given, model = draw_features(), SecondLevel(SPEC).eval()
    torch.nn.init.normal_(model.classifier.weight)
    before = predict_features(model, given)
    for number in range(2):
        views = list(given.views)
        views[number] = views[number]._replace(features=views[number].features + 1)
        assert (predict_features(model, replace(given, views=tuple(views))) - before).abs().max() > 1e-3


def test_load_second_level_reads_the_models_that_were_saved(tmp_path):
    given = draw_features()
    models = [SecondLevel(SPEC).eval() for _ in range(2)]
    for model in models:
        torch.nn.init.normal_(model.classifier.weight)
        model.scale_to(given.views)
    save_second_level(tmp_path / "second.safetensors", models, SPEC)
    for model, loaded in zip(models, load_second_level(tmp_path / "second.safetensors"), strict=True):
        torch.testing.assert_close(predict_features(loaded, given), predict_features(model, given))
