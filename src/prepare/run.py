"""A preparation run: series in parallel, resumed after an interruption, with tables of the results."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, cpu_count, delayed, parallel_config

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.files import discard, write_table
from src.core.log import format_table, progress, say, warn
from src.core.run_folder import claim_folder, only_writer
from src.core.targets import ORGANS
from src.ct.label_ids import read_dataset_ids, read_mask_ids
from src.ct.series import SeriesError, SeriesSource
from src.ct.windows import get_windows, parse_window
from src.data.doubtful import is_doubtful, warn_of_many
from src.data.prepared import VERSION, PreparedDataset, image_folder
from src.data.selection import SliceSelection
from src.prepare.options import PrepareOptions
from src.prepare.retries import run_with_retries
from src.prepare.sources import FoundSources, find_sources
from src.prepare.write_series import (
    SERIES_COLUMNS,
    PrepareJob,
    finished,
    prepare_series,
    preview_path,
    read_outcome,
)

_CONTENT = ("series.csv", "rejected.csv", "images", "masks", "preview")
"""Content in deletion order: without series.csv a data set counts as incomplete. Its dataset.json stays until
it is replaced, so that a run that is killed meanwhile can be repeated."""
_BEGUN = (".dataset-*.json", ".series-*.csv", ".rejected-*.csv")
"""Unfinished files that a killed run leaves beside the content."""
_REJECTED_COLUMNS = ("patient_id", "series_id", "source", "reason")


@dataclass(frozen=True)
class PreparedRun:
    """Result of a run."""

    dataset: PreparedDataset
    kept: int
    """Number of series that an earlier run had finished."""
    stored_bytes: int
    """Size of the images and masks of all series."""
    seconds: float

    def summary(self) -> str:
        """Tables to print: series and slices prepared, and series and files excluded, by reason."""
        every, usable = self.dataset.all_series, self.dataset.series
        totals = {
            "series": len(usable),
            "of an earlier run": self.kept,
            "doubtful": is_doubtful(usable).sum(),
            "skipped": len(every) - len(usable),
            "slices": usable["slices"].sum(),
            "with masks": int(usable["masks"].astype(bool).sum()),
            "MB": round(self.stored_bytes / 1e6, 1),
            "seconds": round(self.seconds, 1),
        }
        parts = [format_table([totals], digits=1)]
        rejected = pd.read_csv(self.dataset.folder / "rejected.csv")
        for items, outcome, reasons in (
            ("series", "doubtful", every.loc[every["status"] == "doubtful", "reason"]),
            ("series", "skipped", every.loc[every["status"] == "skipped", "reason"]),
            ("files", "left out", rejected["reason"]),
        ):
            rows = [{items: n, f"{outcome} because": why} for why, n in reasons.value_counts().items()]
            parts += [format_table(rows)] if rows else []
        return "\n\n".join(parts)


def run_preparation(options: PrepareOptions) -> None:
    """Find the series of `--input`, prepare them into `--output`, and print a summary.

    Raises:
        UserError: nothing to prepare, or an output that cannot be written.
    """
    source, output = options.input.absolute(), options.output.absolute()  # workers have other folders
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"--input {options.input} lies in --output {options.output}")
    job = PrepareJob(
        output=output,
        windows=get_windows(options.windows),
        size=options.size,
        selection=SliceSelection(options.spacing_z_mm, options.count),
        source_window=parse_window(options.source_window) if options.source_window else None,
        mask_ids=_mask_ids(options),
        preview=options.preview,
    )
    jobs = options.jobs or cpu_count()
    found = find_sources(source, options.split, options.masks and options.masks.absolute(), jobs)
    others = f", and {found.other_files} files that are no images" if found.other_files else ""
    say(f"{found.name}: {len(found.series)} series{others}")
    if found.unused_masks:
        warn(f"{found.unused_masks} files in {options.masks} (--masks) belong to no series")
    if len(found.series) > 1 and len(patients := {series.patient_id for series in found.series}) == 1:
        warn(f"all {len(found.series)} series belong to one patient, {min(patients)}: none can be held out")
    run = prepare_all(found, job, jobs, cluster=options.cluster, overwrite=options.overwrite)
    say(f"\n{run.summary()}\n\nprepared data set: {options.output}")
    warn_of_many(run.dataset.series, options.output)


def _mask_ids(options: PrepareOptions) -> dict[int, int] | None:
    """Return the kit's label of each id in `--masks`, None if the ids are the kit's labels."""
    if options.mask_ids:
        return read_mask_ids(options.mask_ids)
    ids = read_dataset_ids(options.masks) if options.masks else None
    if ids is not None:
        organs = {label: organ for organ, label in ORGANS.items()}
        named = ", ".join(f"{identity} {organs[label]}" for identity, label in sorted(ids.items()))
        say(f"ids in --masks, by the dataset.json beside it: {named}; others are background")
    return ids


def prepare_all(
    found: FoundSources,
    job: PrepareJob,
    jobs: int = 1,
    *,
    cluster: str | None = None,
    overwrite: bool = False,
) -> PreparedRun:
    """Prepare every series into `job.output`, skipping those that an earlier run finished.

    A series that cannot be prepared is recorded in series.csv with its reason, and the run continues.

    Args:
        jobs: number of series in parallel, each in its own process.
        cluster: address of a Dask scheduler whose workers prepare instead.
        overwrite: delete an existing prepared data set first.

    Raises:
        UserError: the output holds something else, was made with other options, or cannot be written.
    """
    start = time.monotonic()
    try:
        with only_writer(job.output):
            _claim_output(job, found.name, overwrite)
            remove_leftovers(job.output)
            outcomes, kept = _outcomes(found, job, jobs, cluster)
            remove_leftovers(job.output)  # of cluster workers lost during the run
            _write_tables(job.output, outcomes, found)
    except OSError as error:
        raise UserError(f"cannot write {job.output}: {error.strerror or error}") from error
    return PreparedRun(
        PreparedDataset.open(job.output),
        kept=kept,
        stored_bytes=sum(outcome.get("stored_bytes", 0) for outcome in outcomes),
        seconds=time.monotonic() - start,
    )


def _outcomes(
    found: FoundSources, job: PrepareJob, jobs: int, cluster: str | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the outcomes of all series, sorted, and the number of those from earlier runs."""
    pending, there, kept = [], [], 0
    for source in found.series:
        outcome = finished(source, job)
        kept += outcome is not None
        if outcome is None or (job.preview and not preview_path(source, job.output).exists()):
            pending.append(source)
        else:
            there.append(outcome)
    with _workers(jobs, cluster) as parallel:
        results = parallel(delayed(prepare_or_skip)(source, job) for source in pending)
        new = list(progress(results, total=len(pending), desc="prepare"))
    every = [*there, *new, *_earlier(found.series, job)]
    return sorted(
        every, key=lambda outcome: (outcome["row"]["patient_id"], outcome["row"]["series_id"])
    ), kept


def prepare_or_skip(source: SeriesSource, job: PrepareJob) -> dict[str, Any]:
    """Prepare a series in a child process; return its outcome, which is `skipped` after an error.

    Raises:
        OSError: the output cannot be written, so the next series would fail too.
    """
    try:
        return run_with_retries(prepare_series, source, job, silence_limit_s=job.silence_limit_s)
    except SeriesError as error:
        return _skipped(source, str(error))
    except OSError as error:
        if error.filename is None or Path(error.filename).is_relative_to(job.output):
            raise
        return _skipped(source, f"{Path(error.filename).name}: {error.strerror}")
    # One series in thousands must not end the run: the error is recorded in the tables.
    except Exception as error:
        return _skipped(source, f"unexpected {type(error).__name__}: {error}")


@contextmanager
def _workers(jobs: int, cluster: str | None) -> Iterator[Parallel]:
    """Yield a `Parallel` that returns results as they finish: threads, or the workers of a Dask cluster.

    Each thread or worker keeps a child process for decoding.
    """
    if cluster is None:
        yield Parallel(n_jobs=jobs, backend="threading", return_as="generator_unordered")
        return
    from distributed import Client  # takes half a second to import, and few runs need it

    if "://" not in cluster:
        raise UserError(f"--cluster takes an address such as tcp://10.0.0.1:8786, got {cluster}")
    try:
        client = Client(cluster, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(f"no Dask scheduler answers at {cluster} (--cluster): {error}") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise UserError(f"the Dask scheduler at {cluster} has no workers (--cluster)")
        # Uses a standard library function: a function that a worker cannot import would never return.
        found = [client.run_on_scheduler(find_spec, "src"), *client.run(find_spec, "src").values()]
        if None in found:
            raise UserError(
                f"the Dask scheduler or a worker cannot import the kit: start all with PYTHONPATH={ROOT}"
            )
        with parallel_config(backend="dask", client=client):
            yield Parallel(return_as="generator_unordered")


def remove_leftovers(output: Path) -> None:
    """Remove files and folders that killed runs and lost workers left unfinished."""
    for pattern in (".*.partial", "images/*/.*.partial", "masks/*/.*.partial"):
        for folder in output.glob(pattern):
            discard(folder)
    for pattern in (*_BEGUN, "preview/*/.*.png"):
        for path in output.glob(pattern):
            path.unlink(missing_ok=True)


def _claim_output(job: PrepareJob, source_name: str, overwrite: bool) -> None:
    """Refuse a folder with other content, or made with other options unless `overwrite`."""
    description = {
        "version": VERSION,
        "source": source_name,
        "windows": [asdict(window) for window in job.windows],
        "size": job.size,
        "slices": job.selection.describe(),
    }
    if overwrite and (job.output / "dataset.json").is_file():
        for name in _CONTENT:
            discard(job.output / name)
    claim_folder(
        job.output,
        "dataset.json",
        description,
        kind="a prepared data set",
        leftovers=_BEGUN,
        free=description if overwrite else (),
        named={key: f"another {key}" for key in description},
        advice="give --overwrite or a new --output",
    )


def _earlier(sources: list[SeriesSource], job: PrepareJob) -> Iterator[dict[str, Any]]:
    """Yield finished series of earlier runs that are not among the sources: they stay in the tables."""
    current = {image_folder(job.output, source.patient_id, source.series_id) for source in sources}
    for path in sorted((job.output / "images").glob("*/*/series.json")):
        if path.parent not in current and (outcome := read_outcome(path.parent)) is not None:
            yield outcome


def _skipped(source: SeriesSource, reason: str) -> dict[str, Any]:
    row = {
        "patient_id": source.patient_id,
        "series_id": source.series_id,
        "status": "skipped",
        "reason": reason,
    }
    return {"row": row, "rejected": []}


def _write_tables(output: Path, outcomes: list[dict[str, Any]], found: FoundSources) -> None:
    no_series = {"patient_id": "", "series_id": ""}
    files = [*_with_rejected(outcomes), *(no_series | asdict(item) for item in found.left_out)]
    rejected = pd.DataFrame(files, columns=_REJECTED_COLUMNS)
    write_table(rejected.sort_values(list(_REJECTED_COLUMNS), kind="stable"), output / "rejected.csv")
    table = pd.DataFrame([outcome["row"] for outcome in outcomes], columns=SERIES_COLUMNS)
    counts = [column for column in table if column.startswith(("crop_", "source_")) or column == "slices"]
    table = table.astype(dict.fromkeys(counts, "Int64"))
    table["masks"] = table["masks"].eq(True)
    write_table(table, output / "series.csv")
    if (table["status"] == "skipped").all():
        first = table.iloc[0]
        raise UserError(
            f"none of {len(table)} series can be prepared (see {output / 'series.csv'}); patient "
            f"{first['patient_id']}, series {first['series_id']}: {first['reason']}"
        )


def _with_rejected(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"patient_id": outcome["row"]["patient_id"], "series_id": outcome["row"]["series_id"], **item}
        for outcome in outcomes
        for item in outcome["rejected"]
    ]
