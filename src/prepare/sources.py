"""Find every series to prepare: the competition's data, DICOM files in any folders, or NIfTI volumes."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from src.core.errors import UserError
from src.ct.archives import ZipTree
from src.ct.nifti import nifti_stem
from src.ct.series import Rejected, SeriesSource
from src.ct.storage import FileTree, LocalTree, SingleFile, join, printable, single, walk
from src.prepare.dicom_tree import find_dicom
from src.prepare.nifti_tree import MaskFiles, find_nifti

SPLITS = ("train", "test")

_STRAY = "not in <patient>/<series>/"


@dataclass(frozen=True)
class FoundSources:
    """Series to prepare, and the files that belong to none of them."""

    name: str
    """Kind of the series, for messages and dataset.json: `rsna train`, `DICOM`, `NIfTI`."""
    series: list[SeriesSource]
    """Series sorted by patient and series; pairs of ids are unique."""
    left_out: tuple[Rejected, ...] = ()
    """Files that belong to no series, by their paths below the input."""
    other_files: int = 0
    """Number of files that are not images: texts, pictures, DICOMDIR, labels."""
    unused_masks: int = 0
    """Number of files in `--masks` that belong to no series."""


def find_sources(
    path: Path, split: str | None = None, masks: Path | None = None, jobs: int = 1
) -> FoundSources:
    """Find every series at `path`: a folder, a zip archive (read in place), or a single file.

    An archive gives the same result as the folder that it was created from.

    Args:
        split: train or test, for the competition's layout only; default: train where it exists.
        masks: folder or zip of segmentations, see `MaskFiles`; a series without one there keeps the
            segmentation that its own layout provides.
        jobs: processes that read headers where file names do not define the series.

    Raises:
        UserError: nothing to prepare, ambiguous names, or `masks` that match no series.
    """
    tree = open_tree(path, "--input")
    root = find_competition(tree)
    if root is not None:
        split = _choose_split(tree, root, split)
        series, left_out = find_competition_series(tree, root, split)
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


def open_tree(path: Path, option: str) -> FileTree:
    """Open the tree at `path`: a folder, a zip archive, or a single file.

    Args:
        option: option that the path comes from, for the error message.

    Raises:
        UserError: the path does not exist or is not a readable archive.
    """
    if path.is_dir():
        return LocalTree(path)
    if not path.is_file():
        raise UserError(f"no folder or file {path} ({option})")
    if path.name.lower().endswith(".zip"):
        return ZipTree(path)
    return SingleFile(path.parent, path.name)


# The competition's layout: <split>_images/<patient_id>/<series_id>/<instance>.dcm and segmentations/.


def find_competition(tree: FileTree) -> str | None:
    """Return the folder that contains train_images or test_images, or None.

    It is the root, or the root's only entry, or the only entry of that: archives often wrap their content in
    a folder.
    """
    folder, (folders, files) = "", tree.list_folder("")
    while not _has_images(folders) and len(folders) == 1 and not files:
        folder = join(folder, folders[0])
        folders, files = tree.list_folder(folder)
    return folder if _has_images(folders) else None


def find_competition_series(
    tree: FileTree, root: str, split: str
) -> tuple[list[SeriesSource], list[Rejected]]:
    """Return every series folder of a split, sorted, and the files outside of such folders.

    Images are not listed yet: files are checked, under any name, when the series is read.
    """
    images = join(root, f"{split}_images")
    segmentations = _segmentations(tree, root) if split == "train" else {}
    patients, stray = tree.list_folder(images)
    sources = []
    left_out = [Rejected(printable(join(images, name)), _STRAY) for name in stray]
    for patient_id in patients:
        patient = join(images, patient_id)
        try:
            folders, stray = tree.list_folder(patient)
        except UserError as error:  # affects one patient and must not end the run
            left_out.append(Rejected(printable(patient), str(error)))
            continue
        left_out += [Rejected(printable(join(patient, name)), _STRAY) for name in stray]
        for series_id in folders:
            files = tree.folder(join(patient, series_id))
            name = segmentations.get(series_id)
            segmentation = single(tree, join(root, "segmentations"), name) if name else None
            sources.append(SeriesSource(printable(patient_id), printable(series_id), files, segmentation))
    return sources, left_out


def _choose_split(tree: FileTree, root: str, split: str | None) -> str:
    """Return the requested split, else "train" where it exists, else "test"."""
    folders, _ = tree.list_folder(root)
    there = [name for name in SPLITS if f"{name}_images" in folders]
    if split is not None and split not in there:
        raise UserError(f"{tree.path} has no {split}_images; --split {there[0]} is there")
    return split or there[0]


def _has_images(folders: tuple[str, ...]) -> bool:
    return any(f"{split}_images" in folders for split in SPLITS)


def _segmentations(tree: FileTree, root: str) -> dict[str, str]:
    """Map each series to its file name; .nii precedes .nii.gz."""
    if "segmentations" not in tree.list_folder(root)[0]:
        return {}
    _, names = tree.list_folder(join(root, "segmentations"))
    return {stem: name for name in reversed(names) if (stem := nifti_stem(name)) is not None}


# Any other layout.


def _find_anywhere(tree: FileTree, masks: Path | None, jobs: int) -> FoundSources:
    """Find NIfTI volumes by their names and DICOM files by their headers."""
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
        counts = Counter(item.reason for item in left_out).most_common(3)
        reasons += [f"{count} files left out: {reason}" for reason, count in counts]
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


def _path_inside(inner: Path, outer: Path) -> str | None:
    """Return `inner` as a path below the folder `outer`, None if it is elsewhere."""
    inner, outer = inner.resolve(), outer.resolve()
    return inner.relative_to(outer).as_posix() if inner.is_relative_to(outer) and inner != outer else None


def _with_masks(sources: FoundSources, masks: Path, path: Path) -> FoundSources:
    own_folder = path if path.is_dir() else path.parent
    if masks.resolve() in (path.resolve(), own_folder.resolve()):
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
    return replace(sources, series=paired, unused_masks=files.unused)
