"""Turn any CT that you have into the 8-bit slice stacks that training reads fast.

The competition, from its folder or from its zip as downloaded:
    python prepare_data.py --input data/unpacked --output data/prepared --jobs 8
    python prepare_data.py --input data/rsna-2023-abdominal-trauma-detection.zip --output data/prepared

Any folder tree or zip of DICOM files, and NIfTI volumes with masks beside them:
    python prepare_data.py --input data/hospital --output data/prepared_hospital
    python prepare_data.py --input data/flare/imagesTr --masks data/flare/labelsTr \\
        --mask-ids configs/masks/flare23.yaml --output data/prepared_flare

On a Dask cluster whose workers see the same folders:
    python prepare_data.py --input data/unpacked --output data/prepared --cluster tcp://10.0.0.1:8786

Run it again after an interruption: finished series are kept. What was left out, and why, is printed at the
end and stands in series.csv and rejected.csv.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from joblib import cpu_count

from src.core.config import parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import say, warn
from src.ct.organ_labels import read_mask_ids
from src.ct.windows import get_windows, parse_window
from src.data.selection import SliceSelection
from src.prepare.run import prepare_all
from src.prepare.sources import find_sources
from src.prepare.write_series import PrepareJob


@dataclass(frozen=True)
class PrepareOptions:
    input: Path
    """the competition's folder or zip, any folder tree or zip of DICOM files, or a folder of NIfTI volumes"""
    output: Path
    """prepared data set to make or to complete"""
    windows: tuple[str, ...] = ("soft", "organ", "wide")
    """one to three CT windows, each a channel: soft (50/400), organ (80/160), wide (-50/1400)"""
    size: int = 256
    """side of the square images in pixels; smaller is faster, larger shows finer injuries"""
    split: Literal["train", "test"] | None = None
    """which images to prepare; by default train_images where there are any, else test_images"""
    spacing_z_mm: float | None = None
    """keep about one slice in so many mm rather than all"""
    count: int | None = None
    """keep so many slices a series, evenly spread, rather than all"""
    masks: Path | None = None
    """folder of segmentations, .nii or .nii.gz, named as the volumes or series are"""
    mask_ids: Path | None = None
    """YAML table of their ids, such as configs/masks/totalsegmentator.yaml; by default the competition's"""
    source_window: str | None = None
    """the window that 8-bit images were made with: a name, or centre/width such as 40/350"""
    jobs: int = 0
    """series prepared at the same time; 0 uses every core"""
    cluster: str | None = None
    """address of a Dask scheduler, such as tcp://10.0.0.1:8786: its workers prepare, not this machine"""
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
    source, output = options.input.absolute(), options.output.absolute()  # workers have their own folders
    if source.resolve().is_relative_to(output.resolve()):
        raise UserError(f"--input {options.input} lies in --output {options.output}")
    job = PrepareJob(
        output=output,
        windows=get_windows(options.windows),
        size=options.size,
        selection=SliceSelection(options.spacing_z_mm, options.count),
        source_window=parse_window(options.source_window) if options.source_window else None,
        mask_ids=read_mask_ids(options.mask_ids) if options.mask_ids else None,
        preview=options.preview,
    )
    jobs = options.jobs or cpu_count()
    found = find_sources(source, options.split, options.masks and options.masks.absolute(), jobs)
    aside = f", and {found.other_files} files that are no images" if found.other_files else ""
    say(f"{found.name}: {len(found.series)} series{aside}")
    if found.unused_masks:
        warn(f"{found.unused_masks} files in {options.masks} (--masks) belong to no series")
    run = prepare_all(found, job, jobs, cluster=options.cluster, overwrite=options.overwrite)
    say(f"\n{run.summary()}\n\nprepared data set: {options.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
