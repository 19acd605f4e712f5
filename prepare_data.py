"""Turn the competition's DICOM files into 8-bit slice stacks that training reads fast.

python prepare_data.py --input data/rsna --output data/prepared/train --windows soft organ wide --size 256
python prepare_data.py --input data/rsna --output data/prepared/test --split test --jobs 8 --preview

Run it again after an interruption: finished series are kept. What was left out, and why, is printed at the
end and stands in series.csv and rejected.csv.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from joblib import cpu_count

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import progress, say
from src.data.batch import prepare_all, summarise
from src.data.prepare import PrepareJob
from src.data.preview import contact_sheet
from src.data.rsna import choose_split, find_series
from src.data.stack import PreparedDataset, write_png
from src.data.windows import get_windows


@dataclass(frozen=True)
class PrepareOptions:
    input: Path
    """folder that holds train_images or test_images, and segmentations if there are any"""
    output: Path
    """prepared data set to make or to complete"""
    windows: tuple[str, ...] = ("soft", "organ", "wide")
    """one to three CT windows, each a channel: soft (50/400), organ (80/160), wide (-50/1400)"""
    size: int = 256
    """side of the square images in pixels; smaller is faster, larger shows finer injuries"""
    split: Literal["train", "test"] | None = None
    """which images to prepare; by default train_images where there are any, else test_images"""
    jobs: int = 0
    """processes; 0 uses every core"""
    overwrite: bool = False
    """delete the prepared data set at --output and begin anew"""
    preview: bool = False
    """write a contact sheet of every series to preview/"""

    def __post_init__(self) -> None:
        get_windows(self.windows)
        if not 16 <= self.size <= 2048:
            raise UserError(f"--size must lie between 16 and 2048, got {self.size}")
        if self.jobs < 0:
            raise UserError(f"--jobs must be 0 (every core) or more, got {self.jobs}")


def main(argv: list[str] | None = None) -> None:
    options = parse_options(PrepareOptions, argv, prog="prepare_data.py", description=__doc__)
    split = choose_split(options.input, options.split)
    sources = find_series(options.input, split)
    say(f"preparing {split}_images: {len(sources)} series")
    job = PrepareJob(options.output, get_windows(options.windows), options.size)
    dataset = prepare_all(sources, job, f"rsna {split}", options.jobs or cpu_count(), options.overwrite)
    if options.preview:
        write_previews(dataset)
    say(f"\n{summarise(dataset)}\n\nprepared data set: {options.output}")


def write_previews(dataset: PreparedDataset) -> None:
    """Write preview/<patient_id>_<series_id>.png for every usable series."""
    folder = dataset.folder / "preview"
    folder.mkdir(exist_ok=True)
    pairs = list(zip(dataset.series["patient_id"], dataset.series["series_id"], strict=True))
    for patient_id, series_id in progress(pairs, desc="preview"):
        write_png(folder / f"{patient_id}_{series_id}.png", contact_sheet(dataset, patient_id, series_id))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
