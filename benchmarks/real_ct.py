"""Make one prepared set of three patients of public CT, to measure pre-trained networks on.

    python benchmarks/real_ct.py --ct ../shared/data/ct --output data/real_soft
    python benchmarks/real_ct.py --ct ../shared/data/ct --output data/real_windows --windows soft organ wide
    python -m src.probe --data data/real_soft --run runs/voco/v2

`--ct` has the files as they are published: chaos/dicom and chaos/liver_mask (CHAOS challenge: portal-phase
DICOM, liver masks as PNG, one per slice), totalsegmentator (a CT at 3 mm and its organ labels), and
rsna_processed (a series of the competition in grey levels of the window 400/50, which is excluded with other
windows than `soft`).
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.core.config import check_range, parse_options
from src.core.errors import UserError, exit_on_user_error
from src.core.log import say
from src.core.targets import ORGANS
from src.ct.dicom_series import scan_series
from src.ct.label_ids import read_mask_ids
from src.ct.nifti import write_label_volume
from src.ct.series import SeriesSource
from src.ct.storage import FileList, LocalFile, LocalFolder
from src.ct.windows import WINDOWS, get_windows
from src.prepare.run import prepare_all
from src.prepare.sources import FoundSources
from src.prepare.write_series import PrepareJob

MASK_IDS = read_mask_ids(Path("configs/masks/totalsegmentator.yaml"))
GREY_SPACING_MM = (1.5, 5.0)
"""Pixel and slice distance of the grey series. It came without any; these fit a body of its size."""


@dataclass(frozen=True)
class RealCtOptions:
    ct: Path
    """folder with chaos, totalsegmentator and rsna_processed"""
    output: Path
    """prepared data set to make"""
    windows: tuple[str, ...] = ("soft",)
    """CT windows, each a channel; with others than soft the grey series is excluded"""
    size: int = 144
    """side of the square images in pixels"""

    def __post_init__(self) -> None:
        check_range(self, "size", at_least=16)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(RealCtOptions, argv, prog="real_ct.py", description=__doc__)
    output = options.output.absolute()  # series are prepared in processes of their own
    with tempfile.TemporaryDirectory() as scratch:
        series = [
            chaos_series(options.ct.absolute() / "chaos", Path(scratch)),
            totalsegmentator_series(options.ct.absolute() / "totalsegmentator"),
        ]
        if options.windows == ("soft",):
            series.append(grey_series(options.ct.absolute() / "rsna_processed", Path(scratch)))
        series.sort(key=lambda source: (source.patient_id, source.series_id))
        job = PrepareJob(
            output,
            get_windows(options.windows),
            options.size,
            source_window=WINDOWS["soft"],
            mask_ids=MASK_IDS,
        )
        run = prepare_all(FoundSources("public CT", series), job)
    say(f"{run.summary()}\n\nprepared data set: {options.output}")


def chaos_series(folder: Path, scratch: Path) -> SeriesSource:
    """The CHAOS series, its liver masks in a NIfTI file with the series' own place.

    Raises:
        UserError: no such files, or not a mask for every slice.
    """
    dicom = LocalFolder(folder / "dicom")
    paths = sorted((folder / "liver_mask").glob("*.png"))
    if not paths or not (folder / "dicom").is_dir():
        raise UserError(f"no dicom and liver_mask in {folder} (--ct)")
    series = scan_series(dicom.list())
    names = [file.name for file in dicom.list()]  # masks are in the order of the files
    if len(paths) != len(names):
        raise UserError(f"{folder} has {len(paths)} liver masks for {len(names)} files")
    liver = next(identity for identity, label in MASK_IDS.items() if label == ORGANS["liver"])
    n_slices = len(series.z_mm)
    masks = [paths[names.index(series.source(index))] for index in range(n_slices)]
    labels = np.stack([(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0) * np.uint8(liver) for path in masks])
    first, last = series.plane(0), series.plane(n_slices - 1)
    slice_step = (last.origin - first.origin) / (n_slices - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([slice_step, first.row_step, first.col_step, first.origin], axis=1)
    write_label_volume(scratch / "liver.nii", labels, affine)  # (slices, rows, cols)
    return SeriesSource("chaos", "1", dicom, LocalFile(scratch / "liver.nii"))


def totalsegmentator_series(folder: Path) -> SeriesSource:
    """The CT of TotalSegmentator's tests with its organ labels.

    Raises:
        UserError: no such files.
    """
    volume, labels = folder / "example_ct.nii.gz", folder / "example_seg_fast_force_split.nii.gz"
    for path in (volume, labels):
        if not path.is_file():
            raise UserError(f"no file {path} (--ct)")
    return SeriesSource("totalsegmentator", "1", FileList((LocalFile(volume),)), LocalFile(labels), "nifti")


def grey_series(folder: Path, scratch: Path) -> SeriesSource:
    """The grey series with the place that it lacks: rows run to the front, columns to the right, head first.

    Raises:
        UserError: not exactly one volume in `folder`.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if len(paths) != 1:
        raise UserError(f"{folder} (--ct) must hold one .nii.gz, not {len(paths)}")
    pixel_mm, slice_mm = GREY_SPACING_MM
    ras = np.diag([pixel_mm, pixel_mm, -slice_mm, 1.0])[[1, 0, 2, 3]]
    nib.save(nib.Nifti1Image(np.asarray(nib.load(paths[0]).dataobj), ras), scratch / "grey.nii")
    return SeriesSource("rsna", "1", FileList((LocalFile(scratch / "grey.nii"),)), kind="nifti")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
