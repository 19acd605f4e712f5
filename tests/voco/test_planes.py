"""Samples and runs from a cache of planes are those from PNG."""

import dataclasses
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.core.errors import UserError
from src.data.prepared import image_folder, slice_name
from src.voco.dataset import open_dataset
from src.voco.options import VocoOptions
from src.voco.run import pretrain
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.training_runs import assert_same_training, interrupted_after_saves
from tests.helpers.voco_files import draw_anatomy, draw_noise, write_prepared
from tests.helpers.voco_runs import make_options

SMALL = {"canvas": 36, "depth": 6, "tile": 16, "slices": 2, "windows": ("wide", "soft")}
CASES = {
    "slab": {"extent": "slab"},
    "whole": {"extent": "whole"},
    "jitter": {"extent": "whole", "jitter": 0.3, "grid_z": 3, "slices": 1, "random_crops": 12},
    "image": {"extent": "whole", "foreground": 0.0, "canvas": 60},
    "fine box": {"extent": "box", "spacing_mm": 1.5},
    "coarse box": {"extent": "box", "spacing_mm": 7.0, "jitter": 0.2},
    "neighbours": {"extent": "whole", "jitter": 0.3, "neighbours": 3},
    "distant": {"extent": "box", "neighbours": 3, "neighbour_mm": 8.0},
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    return write_prepared(tmp_path_factory.mktemp("noise") / "set", draw_noise, series=3, slices=30)


def open_set(*folders: Path, cache: Path | None = None, **changes):
    given = SMALL | {"batch": 2, "cache": cache} | changes
    return open_dataset(VocoOptions(data=folders, output=Path("unused"), **given))


def assert_same_samples(first, second):
    for epoch in range(4):
        for entry in range(len(first)):
            assert all(map(torch.equal, first[epoch, entry], second[epoch, entry]))


def files_of(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", CASES)
def test_samples_from_the_cache_equal_those_from_png(noise, tmp_path, name):
    plain, cached = open_set(noise, **CASES[name]), open_set(noise, cache=tmp_path, **CASES[name])
    assert_same_samples(plain, cached)
    assert len(files_of(tmp_path)) == 3
    assert_same_samples(plain, open_set(noise, cache=tmp_path, **CASES[name]))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("slab", (30, 36, 36, 2)),
        ("whole", (6, 36, 36, 2)),
        ("jitter", (9, 36, 36, 2)),  # 1.5 slices per position
        ("fine box", (30, 48, 48, 2)),
        ("coarse box", (21, 14, 14, 2)),  # 145 mm and 96 mm in voxels of 7
        ("neighbours", (30, 36, 36, 2)),
    ],
)
def test_cache_holds_what_canvases_may_show(noise, tmp_path, name, shape):
    open_set(noise, cache=tmp_path, **CASES[name])[0, 0]
    (path,) = files_of(tmp_path)
    assert np.load(path).shape == shape


def test_cache_is_shared_by_runs_that_store_the_same(noise, tmp_path):
    for change in ({}, {"seed": 5}, {"tile": 8}, {"random_crops": 4}, {"appearance": 0.5}):
        open_set(noise, cache=tmp_path, **change)[0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    for change in (
        *({"canvas": 48}, {"windows": ("soft",)}, {"foreground": 0.1}, {"extent": "whole"}),
        *({"extent": "whole", "jitter": 0.1}, {"extent": "whole", "depth": 9}, {"neighbours": 3}),
    ):
        before = len(list(tmp_path.iterdir()))
        open_set(noise, cache=tmp_path, **change)[0, 0]
        assert len(list(tmp_path.iterdir())) == before + 1


def test_cache_of_several_sets_with_other_windows(noise, tmp_path):
    other = write_prepared(
        tmp_path / "other", lambda s, i: draw_noise(s + 9, i)[..., :1], series=2, windows=("narrow",)
    )
    changes = {"windows": ("soft",), "set_windows": ("wide", "narrow"), "repeat": (1, 2)}
    plain, cached = (open_set(noise, other, cache=cache, **changes) for cache in (None, tmp_path / "cache"))
    assert_same_samples(plain, cached)
    assert len(files_of(tmp_path / "cache")) == 5


def test_cache_is_filled_by_two_processes_at_once(noise, tmp_path):
    plain, cached = open_set(noise), open_set(noise, cache=tmp_path)
    context = get_context("fork")
    both = [context.Process(target=lambda: [cached[0, entry] for entry in range(3)]) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(files_of(tmp_path)) == 3
    assert_same_samples(plain, cached)


def test_cache_of_a_damaged_series_is_refused(tmp_path):
    folder = write_prepared(tmp_path / "set", draw_noise, series=1)
    (image_folder(folder, "10", "100") / slice_name(11)).write_bytes(b"")
    with pytest.raises(UserError, match=r"0011\.png is damaged"):
        open_set(folder, cache=tmp_path / "cache")[0, 0]
    assert not files_of(tmp_path / "cache")


def test_pretrain_with_a_cache_gives_the_same_run(tmp_path):
    """Interrupted and continued with it, by workers, on series of which some are doubtful."""
    folder = write_prepared(tmp_path / "set", draw_anatomy, series=6)
    mark_doubtful(folder, ["104"])
    options = make_options(folder, tmp_path / "png", extent="whole", jitter=0.2)
    pretrain(options)
    cache = tmp_path / "cache"
    cached = dataclasses.replace(options, output=tmp_path / "cached", cache=cache)
    with interrupted_after_saves(3):
        pretrain(cached)
    pretrain(dataclasses.replace(cached, workers=2))
    assert_same_training(options.output, cached.output)
    assert {path.name.split(".")[0] for path in files_of(cache)} == {"100", "101", "102", "103", "105"}
    packed = {path: path.stat().st_mtime_ns for path in files_of(cache)}
    again = dataclasses.replace(cached, output=tmp_path / "again")
    pretrain(again)  # from the cache alone
    assert_same_training(options.output, again.output)
    assert packed == {path: path.stat().st_mtime_ns for path in files_of(cache)}
    assert pd.read_csv(again.output / "patients.csv").shape == (5, 2)
