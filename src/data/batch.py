"""A whole run of preparation: series in parallel, resumed, with tables of what came of each."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from src.core.errors import UserError
from src.core.files import write_json, write_table
from src.core.log import format_table, progress, warn
from src.data.dicom import SAFE_READERS
from src.data.prepare import PrepareJob, prepare_series
from src.data.rsna import SeriesSource
from src.data.series import SeriesError
from src.data.stack import VERSION, PreparedDataset, image_folder, partial_folder, read_description

_CONTENT = ("series.csv", "rejected.csv", "images", "masks", "preview", "dataset.json")
"""In the order of deletion: a set that is half deleted says so by having no series.csv."""
_REJECTED_COLUMNS = ("patient_id", "series_id", "source", "reason")


def prepare_all(
    sources: list[SeriesSource], job: PrepareJob, source_name: str, jobs: int, overwrite: bool
) -> PreparedDataset:
    """Prepare every series into `job.output`, skipping those that an earlier run finished.

    A series that cannot be prepared is recorded in series.csv with its reason, and the run goes on.

    Args:
        source_name: what the series are, for dataset.json.
        jobs: processes.
        overwrite: delete the prepared data set that is there first.

    Raises:
        UserError: the output holds something else, was made with other options, or cannot be written.
    """
    try:
        _claim_output(job, source_name, overwrite)
        outcomes = sorted(
            [
                *progress(_run(sources, job, jobs), total=len(sources), desc="prepare"),
                *_earlier(sources, job),
            ],
            key=lambda outcome: (outcome["row"]["patient_id"], outcome["row"]["series_id"]),
        )
        _write_tables(job.output, outcomes)
    except OSError as error:
        raise UserError(f"cannot write {job.output}: {error.strerror or error}") from error
    return PreparedDataset.open(job.output)


def summarise(dataset: PreparedDataset) -> str:
    """Tables for the end of a run: series and slices prepared, and what was left out, by reason."""
    every, usable = dataset.all_series, dataset.series
    counts = {"series": len(usable), "skipped": len(every) - len(usable), "slices": usable["slices"].sum()}
    parts = [format_table([{**counts, "with masks": int(usable["masks"].astype(bool).sum())}])]
    skipped = every.loc[every["status"] == "skipped", "reason"].value_counts()
    if len(skipped):
        parts.append(format_table([{"series": n, "skipped because": why} for why, n in skipped.items()]))
    rejected = pd.read_csv(dataset.folder / "rejected.csv")["reason"].value_counts()
    if len(rejected):
        parts.append(format_table([{"files": n, "left out because": why} for why, n in rejected.items()]))
    return "\n\n".join(parts)


def _claim_output(job: PrepareJob, source_name: str, overwrite: bool) -> None:
    """Make sure that the output is ours to write, and holds nothing made with other options."""
    description = {
        "version": VERSION,
        "source": source_name,
        "windows": [asdict(window) for window in job.windows],
        "size": job.size,
        "slices": "all",
    }
    if (job.output / "dataset.json").is_file():
        if overwrite:
            for name in _CONTENT:
                path = job.output / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        else:
            there = read_description(job.output)
            other = [key for key, value in description.items() if there.get(key) != value]
            if other:
                raise UserError(
                    f"{job.output} has another {', '.join(other)}: give --overwrite or a new --output"
                )
    elif job.output.exists() and (not job.output.is_dir() or any(job.output.iterdir())):
        raise UserError(f"{job.output} exists and is not a prepared data set: give another --output")
    write_json(description, job.output / "dataset.json")


def _run(sources: list[SeriesSource], job: PrepareJob, jobs: int) -> Iterator[dict[str, Any]]:
    """Outcomes in the order in which series finish.

    A decoder can crash its process on a malformed file, and joblib then loses all workers. The series being
    prepared show by their partial folders: they are repeated one by one with pydicom alone, each in a
    process of its own, and the rest goes on in parallel.
    """
    pending = {(source.patient_id, source.series_id): source for source in sources}
    while pending:
        work = Parallel(n_jobs=jobs, return_as="generator_unordered")
        try:
            for outcome in work(delayed(_prepare_or_skip)(source, job) for source in list(pending.values())):
                del pending[outcome["row"]["patient_id"], outcome["row"]["series_id"]]
                yield outcome
        except TerminatedWorkerError:
            interrupted = [key for key in pending if partial_folder(image_folder(job.output, *key)).exists()]
            for key in interrupted or list(pending)[:1]:
                yield _prepare_in_own_process(pending.pop(key), replace(job, readers=SAFE_READERS))


def _earlier(sources: list[SeriesSource], job: PrepareJob) -> Iterator[dict[str, Any]]:
    """Finished series of earlier runs that are not among the sources: they stay in the tables."""
    current = {image_folder(job.output, source.patient_id, source.series_id) for source in sources}
    for path in sorted((job.output / "images").glob("*/*/series.json")):
        if path.parent not in current and not path.parent.name.startswith("."):
            yield json.loads(path.read_text(encoding="utf-8"))


def _prepare_or_skip(source: SeriesSource, job: PrepareJob) -> dict[str, Any]:
    cv2.setNumThreads(1)  # the processes share the cores already
    try:
        return prepare_series(source, job)
    except SeriesError as error:
        return _skipped(source, str(error))
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(source.folder):
            raise  # the output cannot be written, nor could the next series
        return _skipped(source, f"{Path(error.filename).name}: {error.strerror}")
    # One series in thousands must not end the run: whatever it is, the tables tell it.
    except Exception as error:
        return _skipped(source, f"unexpected {type(error).__name__}: {error}")


def _prepare_in_own_process(source: SeriesSource, job: PrepareJob) -> dict[str, Any]:
    warn(
        f"series {source.series_id} of patient {source.patient_id}: a decoder crashed, once more with pydicom"
    )
    try:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_prepare_or_skip, source, job).result()
    except BrokenProcessPool:
        return _skipped(source, "the decoder crashes on it")


def _skipped(source: SeriesSource, reason: str) -> dict[str, Any]:
    row = {
        "patient_id": source.patient_id,
        "series_id": source.series_id,
        "status": "skipped",
        "reason": reason,
    }
    return {"row": row, "rejected": []}


def _write_tables(output: Path, outcomes: list[dict[str, Any]]) -> None:
    rows = pd.DataFrame([outcome["row"] for outcome in outcomes])
    if (rows["status"] == "skipped").all():
        first = rows.iloc[0]
        raise UserError(
            f"none of {len(rows)} series can be prepared; patient {first['patient_id']}, "
            f"series {first['series_id']}: {first['reason']}"
        )
    write_table(pd.DataFrame(_with_rejected(outcomes), columns=_REJECTED_COLUMNS), output / "rejected.csv")
    counts = [column for column in rows if column.startswith(("crop_", "source_")) or column == "slices"]
    columns = [column for column in rows if column not in ("status", "reason")]
    table = rows[[*columns, "status", "reason"]].astype(dict.fromkeys(counts, "Int64"))
    table["masks"] = table["masks"].eq(True)
    write_table(table, output / "series.csv")


def _with_rejected(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"patient_id": outcome["row"]["patient_id"], "series_id": outcome["row"]["series_id"], **item}
        for outcome in outcomes
        for item in outcome["rejected"]
    ]
