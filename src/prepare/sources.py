"""What there is to prepare at a path: the competition's data, DICOM files in any order, or NIfTI volumes."""

from dataclasses import replace
from pathlib import Path

from src.core.errors import UserError
from src.ct.file_tree import FileTree, join, open_tree, walk
from src.ct.nifti import nifti_stem
from src.prepare.dicom_tree import find_dicom
from src.prepare.nifti_tree import MaskFiles, find_nifti
from src.prepare.rsna import choose_split, find_root, find_series
from src.prepare.series_source import FoundSources, LeftOut, SeriesSource

__all__ = ["FoundSources", "LeftOut", "SeriesSource", "find_sources"]


def find_sources(
    path: Path, split: str | None = None, masks: Path | None = None, jobs: int = 1
) -> FoundSources:
    """Every series at `path`, a folder, a zip archive that is read in place, or a single file.

    An archive and the folder that it was made of, or is unpacked to, give the same.

    Args:
        split: train or test, for the competition's layout alone; by default train where there is one.
        masks: folder or zip of segmentations, see `MaskFiles`; a series that none belongs to keeps the one
            that its own layout has.
        jobs: processes that read headers where only these tell which files are a series.

    Raises:
        UserError: nothing to prepare, ambiguous names, or `masks` that belong to nothing.
    """
    tree = open_tree(path, "--input")
    root = find_root(tree)
    if root is not None:
        split = choose_split(tree, root, split)
        series, left_out = find_series(tree, root, split)
        if not series:
            images = join(root, f"{split}_images")
            expected = f"{images}/<patient_id>/<series_id>/*.dcm"
            raise UserError(f"no series in {images} of {path}; expected {expected}")
        found = FoundSources(f"rsna {split}", series, tuple(left_out))
    elif split is not None:
        raise UserError(f"{path} has neither train_images nor test_images, so there is no --split {split}")
    else:
        found = _find_anywhere(tree, masks, jobs)
    return found if masks is None else _with_masks(found, masks, path)


def _find_anywhere(tree: FileTree, masks: Path | None, jobs: int) -> FoundSources:
    """NIfTI volumes by their names, DICOM files by their content."""
    inside = _path_inside(masks, tree.path) if masks is not None else None
    folders = [
        (folder, names)
        for folder, names in walk(tree)
        if inside is None or not f"{folder}/".startswith(f"{inside}/")
    ]
    volumes, labels = find_nifti(tree, folders)
    others = [
        (folder, tuple(name for name in names if nifti_stem(name) is None)) for folder, names in folders
    ]
    series, left_out, no_images = find_dicom(tree, others, jobs)
    every = sorted([*series, *volumes], key=lambda source: (source.patient_id, source.series_id))
    if not every:
        reasons = [f"{labels} NIfTI files in folders of labels"] * bool(labels)
        reasons += [f"{no_images} files that are neither DICOM nor NIfTI"] * bool(no_images)
        reasons += [f"{len(left_out)} files, the first of which: {item.reason}" for item in left_out[:1]]
        raise UserError(f"no CT in {tree.path} (--input), only {', '.join(reasons) or 'empty folders'}")
    twice = {(source.patient_id, source.series_id) for source in series} & {
        (source.patient_id, source.series_id) for source in volumes
    }
    if twice:
        raise UserError(
            "DICOM files and a NIfTI volume would both be series {1} of patient {0}".format(*min(twice))
        )
    name = " and ".join(["DICOM"] * bool(series) + ["NIfTI"] * bool(volumes))
    return FoundSources(name, every, tuple(left_out), labels + no_images)


def _with_masks(sources: FoundSources, masks: Path, path: Path) -> FoundSources:
    own_folder = path if path.is_dir() else path.parent
    if masks.resolve() == own_folder.resolve():
        raise UserError(f"--masks and --input are both in {masks}: segmentations need a folder of their own")
    files = MaskFiles(open_tree(masks, "--masks"))
    volumes = [source for source in sources.series if source.kind == "nifti"]
    others = [source for source in sources.series if source.kind == "dicom"]
    found = [*files.of_volumes(volumes), *files.of_series(others)]
    if not any(found):
        raise UserError(f"no segmentation in {masks} (--masks) has the name of a series in {path}")
    paired = [
        source if file is None else replace(source, segmentation=file)
        for source, file in zip([*volumes, *others], found, strict=True)
    ]
    paired.sort(key=lambda source: (source.patient_id, source.series_id))
    used = {file.name for file in found if file is not None}
    return replace(sources, series=paired, unused_masks=files.count - len(used))


def _path_inside(inner: Path, outer: Path) -> str | None:
    """`inner` as a path below the folder `outer`, None where it lies elsewhere."""
    inner, outer = inner.resolve(), outer.resolve()
    return inner.relative_to(outer).as_posix() if inner.is_relative_to(outer) and inner != outer else None
