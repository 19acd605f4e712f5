"""The competition's layout: <split>_images/<patient_id>/<series_id>/<instance>.dcm and segmentations/."""

from src.core.errors import UserError
from src.ct.file_tree import FileTree, join, single
from src.ct.nifti import nifti_stem
from src.ct.storage import printable
from src.prepare.series_source import LeftOut, SeriesSource

SPLITS = ("train", "test")

_STRAY = "not in <patient>/<series>/"


def find_root(tree: FileTree) -> str | None:
    """The folder that holds train_images or test_images: the root, or the only thing in it; None if neither.

    Archives often hold one folder that holds all the rest.
    """
    folder, (folders, files) = "", tree.list_folder("")
    while not _has_images(folders) and len(folders) == 1 and not files:
        folder = join(folder, folders[0])
        folders, files = tree.list_folder(folder)
    return folder if _has_images(folders) else None


def choose_split(tree: FileTree, root: str, split: str | None) -> str:
    """The split to prepare: the one asked for, else "train" where there is one, else "test".

    Raises:
        UserError: no images of the split asked for.
    """
    folders, _ = tree.list_folder(root)
    there = [name for name in SPLITS if f"{name}_images" in folders]
    if split is not None and split not in there:
        raise UserError(f"{tree.path} has no {split}_images; --split {there[0]} is there")
    return split or there[0]


def find_series(tree: FileTree, root: str, split: str) -> tuple[list[SeriesSource], list[LeftOut]]:
    """Every series folder of a split, sorted by patient and series, and what lies outside of them.

    Not one image is listed yet. All that a series folder holds is judged where it is read, whatever its name.
    """
    images = join(root, f"{split}_images")
    segmentations = _segmentations(tree, root) if split == "train" else {}
    patients, stray = tree.list_folder(images)
    sources = []
    left_out = [LeftOut(printable(join(images, name)), _STRAY) for name in stray]
    for patient_id in patients:
        patient = join(images, patient_id)
        try:
            folders, stray = tree.list_folder(patient)
        except UserError as error:  # of one patient, which must not end the run
            left_out.append(LeftOut(printable(patient), str(error)))
            continue
        left_out += [LeftOut(printable(join(patient, name)), _STRAY) for name in stray]
        for series_id in folders:
            files = tree.folder(join(patient, series_id))
            name = segmentations.get(series_id)
            segmentation = single(tree, join(root, "segmentations"), name) if name else None
            sources.append(SeriesSource(printable(patient_id), printable(series_id), files, segmentation))
    return sources, left_out


def _has_images(folders: tuple[str, ...]) -> bool:
    return any(f"{split}_images" in folders for split in SPLITS)


def _segmentations(tree: FileTree, root: str) -> dict[str, str]:
    """File name by series; .nii goes before .nii.gz."""
    if "segmentations" not in tree.list_folder(root)[0]:
        return {}
    _, names = tree.list_folder(join(root, "segmentations"))
    return {stem: name for name in reversed(names) if (stem := nifti_stem(name)) is not None}
