"""Seconds of a series from DICOM to probabilities, stage by stage, and how well the stages overlap.

    python benchmarks/bench_infer.py --json infer.json
    python benchmarks/bench_infer.py --quick

A phantom at 512 px, with as many slices as an average series of the competition, linked to several series.
The models have random weights: the published setting (48 slices, 192 px crops of 256 px, three windows) on a
backbone. Alone, one after the other:

    decode     headers, finding the body, and the slices of the models' stacks, to grey levels
    transform  cutting stacks out of them
    model      the forward passes, torch on one thread

and then infer.py's pipeline, one process that decodes beside one thread for the models. Its seconds per
series are counted from the end of the first series to that of the last; divided by those of the slowest stage
alone they give what the overlap misses. The start is what comes before: starting the process, and the first
series. Memory is that of the pipeline's process and the one that decodes, in the first 20 and in all of 200
series of 40 slices.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from harness import BenchOptions, in_fresh_process, process_tree, resident_bytes, run_main, time_each
from phantom_files import phantom_series, write_series

from src.cls.model import ClassifierSpec, TraumaClassifier, save_classifier
from src.cls.views import StackView
from src.core.errors import UserError
from src.core.log import format_table, say
from src.core.runtime import torch_seed
from src.core.targets import CLASS_WEIGHTS
from src.infer.budget import TimeBudget
from src.infer.ensemble import Ensemble
from src.infer.pipeline import order_series, predict_all
from src.infer.predictor import SeriesPredictor
from src.infer.read_ahead import ReadAhead
from src.infer.results import Results
from src.infer.stack_sources import LoadedSeries, RawSource
from src.nn.encoder import GREY_MEAN, GREY_STD
from src.score.postprocess import PostProcessing

OVERLAP_LIMIT = 1.15
COMPETITION_SERIES, COMPETITION_SLICES = 1770, 317
EARLY, LATE = 20, 200
"""Series after which memory is measured."""
BACKBONES = ("mobilenetv3_small_050", "efficientnet_b0")


def main(options: BenchOptions) -> dict[str, Any]:
    n_series, n_slices = (4, 60) if options.quick else (24, 317)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = write_slices(folder, n_slices)
        raw = link_series(files, folder / "raw", n_series)
        short = link_series(files[:40], folder / "short", 8 + EARLY if options.quick else LATE)
        for backbone in BACKBONES:
            run = write_model(folder / backbone, backbone)
            figures[backbone] = time_stages(raw, run)
        memory = in_fresh_process(watch_memory, short, folder / BACKBONES[0])
    rows = [{"backbone": backbone, **seconds} for backbone, seconds in figures.items()]
    for row in rows:
        row["competition_hours"] = COMPETITION_SERIES * row["wall_s"] / 3600 * COMPETITION_SLICES / n_slices
    say(f"\nseconds per series of {n_slices} slices\n{format_table(rows, 2)}")
    say(
        f"competition_hours: {COMPETITION_SERIES} series of {COMPETITION_SLICES} slices at this pace; "
        f"wall_over_slowest is to be at most {OVERLAP_LIMIT}"
    )
    say(f"\nmemory in MB, at most in the first {EARLY} series and in all\n{format_table([memory], 0)}")
    return {"series": n_series, "slices": n_slices, "backbones": figures, "memory": memory}


def time_stages(raw: Path, run: Path) -> dict[str, float]:
    """Seconds per series of each stage alone, and of the pipeline, without and with its start."""
    predictor, source, series = open_all(raw, run)
    full = predictor.ensemble.full
    source.decode(*series[0])  # starts the process that decodes
    decoded, decode_s = time_each(series, lambda key: source.decode(*key))
    made, transform_s = time_each(decoded, source.make_stacks)
    read = [LoadedSeries(key, *parts) for key, parts in zip(series, made, strict=True)]
    predictor.predict(read[0], full)
    predictions, _ = time_each(read, lambda each: predictor.predict(each, full))
    stages = {
        "decode_s": decode_s,
        "transform_s": transform_s,
        "model_s": statistics.mean(sum(prediction.runs_s) for prediction in predictions),
    }
    started_s, ended_s = time.perf_counter(), []
    run_pipeline(source, predictor, series, lambda: ended_s.append(time.perf_counter()))
    wall_s = (ended_s[-1] - ended_s[0]) / (len(series) - 1)
    start_s = ended_s[0] - started_s
    return stages | {"wall_s": wall_s, "wall_over_slowest": wall_s / max(stages.values()), "start_s": start_s}


def open_all(raw: Path, run: Path) -> tuple[SeriesPredictor, RawSource, list[tuple[str, str]]]:
    """The models where they are fastest, the images, and the ids of all series."""
    predictor = SeriesPredictor(Ensemble([run]))
    predictor.use_fastest("auto")
    source = RawSource(raw, predictor.ensemble.stack_kinds)
    patients = sorted(path.name for path in (raw / "test_images").iterdir())
    return predictor, source, order_series(source, patients)


def run_pipeline(
    source: RawSource,
    predictor: SeriesPredictor,
    series: list[tuple[str, str]],
    after_each: Callable[[], None],
) -> None:
    """Predict series as infer.py does.

    Raises:
        UserError: it did not predict all of them.
    """

    class Observed(SeriesPredictor):
        def predict(self, *arguments: Any) -> Any:
            prediction = predictor.predict(*arguments)
            after_each()
            return prediction

    ensemble = predictor.ensemble
    sample = pd.DataFrame({"patient_id": [patient_id for patient_id, _ in series]})
    results = Results(series, sample, PostProcessing.identity(1), ensemble.prior)
    budget = TimeBudget(len(series), ensemble.subsets, math.inf, started=time.monotonic())
    predict_all(ReadAhead(source, series), [Observed(ensemble)], results, budget, lambda: None)
    report = results.report()
    if set(report.status) != {"ok"}:
        raise UserError(f"not every series could be predicted: {report.reason.max()}")


def watch_memory(raw: Path, run: Path) -> dict[str, float]:
    """Resident MB, with the process that decodes, after some series and after many."""
    predictor, source, series = open_all(raw, run)
    seen = []

    def look() -> None:
        seen.append(sum(resident_bytes("VmRSS", pid) for pid in process_tree(os.getpid())) / 1e6)

    run_pipeline(source, predictor, series, look)
    return {"series": len(seen), "early_mb": max(seen[:EARLY]), "peak_mb": max(seen)}


def write_slices(folder: Path, count: int) -> list[Path]:
    """DICOM files of one series, 1 mm apart, from a phantom of 512 px."""
    anatomy = phantom_series(folder / "phantom", spacing_z_mm=4.0)
    slices = [anatomy.read(index) for index in range(len(anatomy.z_mm))]
    return sorted(
        write_series(folder / "series", slices, count, anatomy.pixel_mm[0], "uncompressed").iterdir()
    )


def link_series(files: list[Path], folder: Path, count: int) -> Path:
    """Test patients of one series each, all with the same files."""
    for number in range(count):
        series = folder / "test_images" / f"{number}" / f"{number}"
        series.mkdir(parents=True)
        for file in files:
            (series / file.name).hardlink_to(file)
    return folder


def write_model(run: Path, backbone: str) -> Path:
    """A run folder with one model of random weights."""
    windows = ("soft", "organ", "wide")
    view = StackView(windows, size=256, crop=192, slices=48)
    mean, std = (GREY_MEAN,) * len(windows), (GREY_STD,) * len(windows)
    prior = {column: weight / 10 for column, weight in CLASS_WEIGHTS.items()}
    spec = ClassifierSpec(backbone, view, mean, std, prior=prior)
    with torch_seed(0):
        save_classifier(run / "fold0" / "model.safetensors", TraumaClassifier(spec), spec)
    return run


if __name__ == "__main__":
    run_main(main, BenchOptions, threads=1)
