"""NIfTI volumes in any folders, identified by their paths, and the segmentations that match them."""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from src.core.errors import UserError
from src.ct.label_ids import labels_of_names
from src.ct.nifti import nifti_stem
from src.ct.series import OrganFiles, SeriesSource
from src.ct.storage import FileList, FileTree, StoredFile, join, printable, single, walk
from src.prepare.dicom_tree import safe_id

_LABEL_FOLDER = re.compile(r"(labels?|masks?|segmentations?)(?![a-z])|labels(tr|ts|va)", re.IGNORECASE)
_IMAGES_OF_NNUNET = re.compile(r"images(tr|ts|va)", re.IGNORECASE)
_LABELS_OF_NNUNET = re.compile(r"labels(tr|ts|va)", re.IGNORECASE)
_ID_BYTES = 200  # out of the 255 that a file name may have
_FIRST_CHANNEL = "_0000"  # nnU-Net appends a channel number to the names of images, not of labels


def find_nifti(tree: FileTree, folders: list[tuple[str, tuple[str, ...]]]) -> tuple[list[SeriesSource], int]:
    """Return one series per volume, sorted by ids, and the number of files excluded as labels.

    series_id is the name without .nii or .nii.gz, patient_id the folders joined by "_". At the root and in
    nnU-Net's imagesTr, imagesTs and imagesVa, patient_id ends with the case, see `_case`. `safe_id` makes
    both valid folder names. Folders whose names begin with labels, masks or segmentations are skipped,
    except that files named after organs in segmentations/, beside a single volume, are its masks.

    Raises:
        UserError: two volumes would have the same ids.
    """
    paths: dict[tuple[str, str], str] = {}
    sources, labels = [], 0
    names_in = dict(folders)
    is_label_tree = _LABELS_OF_NNUNET.fullmatch(tree.path.resolve().name)
    for folder, names in folders:
        volumes = [name for name in names if nifti_stem(name) is not None]
        if is_label_tree or any(_LABEL_FOLDER.match(part) for part in folder.split("/")):
            labels += len(volumes)
            continue
        stems = {nifti_stem(name) for name in volumes}
        outer, _, last = folder.rpartition("/")
        one_per_case = not folder or _IMAGES_OF_NNUNET.fullmatch(last)
        for name in volumes:
            stem, path = nifti_stem(name), join(folder, name)
            patient = join(outer, _case(stem, stems)) if one_per_case else folder
            ids = (_folder_name(patient.replace("/", "_")), _folder_name(stem))
            if ids in paths:
                raise UserError(
                    f"{paths[ids]} and {path} would both be series {ids[1]} of patient {ids[0]}: rename one"
                )
            paths[ids] = path
            inner = join(folder, "segmentations")
            masks = [join(inner, mask) for mask in names_in.get(inner, ())] if len(volumes) == 1 else []
            files, organs = FileList((single(tree, "", path),)), _organ_files(tree, masks)
            sources.append(SeriesSource(*ids, files, organs, kind="nifti"))
    return sorted(sources, key=lambda source: (source.patient_id, source.series_id)), labels


def _case(stem: str, stems: Collection[str]) -> str:
    """Return the case of a volume: <case> of nnU-Net's <case>_<channel>, else its whole name.

    Channels start at 0000. If all volumes of the folder, `stems`, are ct_0000, ct_0001, ..., they are cases.
    """
    case, _, channel = stem.rpartition("_")
    is_channel = case and re.fullmatch(r"\d{4}", channel) and case + _FIRST_CHANNEL in stems
    several = len(stems) == 1 or not all(other.startswith(f"{case}_") for other in stems)
    return case if is_channel and several else stem


def _organ_files(tree: FileTree, paths: Sequence[str]) -> OrganFiles | None:
    """Return the volumes that are named after organs, of the files of one folder; None without any."""
    stems = ((nifti_stem(path), path) for path in reversed(paths))  # .nii precedes .nii.gz
    path_of = {PurePosixPath(stem).name: path for stem, path in stems if stem is not None}
    labels = sorted((label, path_of[name]) for name, label in labels_of_names(path_of).items())
    files = tuple(single(tree, "", path) for _, path in labels)
    return OrganFiles(files, tuple(label for label, _ in labels)) if files else None


def _folder_name(text: str) -> str:
    return text if printable(text) == text and len(text.encode()) <= _ID_BYTES else safe_id(text)


class MaskFiles:
    """Segmentations in a file tree, looked up by the name of the series that they match."""

    def __init__(self, tree: FileTree):
        self._tree = tree
        self._unused: set[str] = set()
        self._by_path: dict[str, str] = {}
        self._by_folder: dict[str, list[str]] = {}
        for folder, names in walk(tree):
            paths = [join(folder, name) for name in names if nifti_stem(name) is not None]
            self._by_folder[printable(folder)] = paths
            self._unused.update(paths)
            for path in reversed(paths):  # .nii precedes .nii.gz
                self._by_path[printable(nifti_stem(path))] = path

    @property
    def unused(self) -> int:
        """Number of files that no series has taken so far."""
        return len(self._unused)

    def of_volumes(self, sources: list[SeriesSource]) -> list[StoredFile | OrganFiles | None]:
        """Return the segmentation of each volume, None where there is none.

        A segmentation matches if it has the volume's path; or its name, if no other volume has that name; or
        if it is the only one, or in files named after organs, in a folder with the volume's name, or in the
        volume's own folder if this is not the root and contains one volume. A trailing _0000 of the volume's
        name is optional.
        """
        paths = [PurePosixPath(nifti_stem(source.files.list()[0].name)) for source in sources]
        in_folder, of_name = Counter(path.parent for path in paths), Counter(path.name for path in paths)
        found = []
        for path in paths:
            named = [path, path.with_name(path.name.removesuffix(_FIRST_CHANNEL) or path.name)]
            alone = [PurePosixPath(item.name) for item in named] if of_name[path.name] == 1 else []
            folders = [
                *named,
                *alone,
                *([path.parent] if path.parent.name and in_folder[path.parent] == 1 else []),
            ]
            found.append(self._first([*named, *alone], folders))
        return found

    def of_series(self, sources: list[SeriesSource]) -> list[StoredFile | OrganFiles | None]:
        """Return the segmentation of each DICOM series, None where there is none.

        Its name is <series_id> or <patient_id>/<series_id>, or it is the only one, or in files named after
        organs, in a folder with such a name.
        """
        found = []
        for source in sources:
            named = [PurePosixPath(source.series_id), PurePosixPath(source.patient_id, source.series_id)]
            found.append(self._first(named, named))
        return found

    def _first(
        self, named: list[PurePosixPath], folders: list[PurePosixPath]
    ) -> StoredFile | OrganFiles | None:
        for path in named:
            if str(path) in self._by_path:
                return self._take([self._by_path[str(path)]])
        for folder in folders:
            paths = self._by_folder.get(_key(folder), [])
            organs = _organ_files(self._tree, paths)
            if organs is not None or len(paths) == 1:
                return self._take(paths, organs)
        return None

    def _take(self, paths: list[str], organs: OrganFiles | None = None) -> StoredFile | OrganFiles:
        self._unused.difference_update(paths)
        return organs or single(self._tree, "", paths[0])


def _key(folder: PurePosixPath) -> str:
    return "" if str(folder) == "." else str(folder)
