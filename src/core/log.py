"""Output of a run: lines, progress, tables, and metrics.csv with TensorBoard events."""

import csv
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    import pandas as pd

Item = TypeVar("Item")


def is_main_process() -> bool:
    """Return True in the process that prints and writes: rank 0 under torchrun, else the only process."""
    return int(os.environ.get("RANK", "0")) == 0


def say(message: str) -> None:
    """Print a line, in the main process only."""
    if is_main_process():
        print(message, flush=True)


def warn(message: str) -> None:
    """Print a line that begins with `warning:` on stderr, in the main process only."""
    if is_main_process():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def progress(iterable: Iterable[Item] | None, total: int | None = None, desc: str = "") -> tqdm:
    """Return a progress bar on a terminal; silent in log files and on other ranks."""
    hidden = not (is_main_process() and sys.stderr.isatty())
    return tqdm(iterable, total=total, desc=desc, disable=hidden)


def format_table(rows: "list[dict[str, Any]] | pd.DataFrame", digits: int = 4) -> str:
    """Format as aligned plain text: floats with `digits` decimals, missing values as `-`."""
    import pandas as pd  # not for --help

    frame = pd.DataFrame(rows)
    return frame.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.{digits}f}")


class MetricsWriter(Protocol):
    """Another output of the metrics of a run."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """Metrics of a run by step: `metrics.csv` and TensorBoard events, in one folder, and another output.

    Existing rows in the folder are continued; those after the step `drop_after`, which a resumed run writes
    again, are removed.
    """

    def __init__(self, folder: str | Path, drop_after: int | None = None, other: MetricsWriter | None = None):
        from tensorboard.summary import Writer  # not for --help

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.csv"
        self.rows: list[dict[str, Any]] = []
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open(newline="") as file:
                kept = csv.DictReader(file)
                self.rows = [row for row in kept if drop_after is None or int(row["step"]) <= drop_after]
        self.writer, self.other = Writer(str(self.folder)), other
        self._save()

    def log(self, step: int, **values: float | str) -> None:
        """Add a row. Numbers are written to all outputs, text to the table only."""
        self.rows.append({"step": step, **values})
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
        self._save()
        if self.other is not None:
            self.other.write(step, numbers)

    def _save(self) -> None:
        """Rewrite the table, since columns may appear late; a run has a few thousand rows at most."""
        columns = dict.fromkeys(column for row in self.rows for column in row)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
            table.writeheader()
            table.writerows(self.rows)
        os.replace(temporary, self.path)

    def close(self) -> None:
        self.writer.close()
        if self.other is not None:
            self.other.close()
