"""The organs that the ids of a label map stand for, and that files of one organ each are named after."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.targets import ORGANS

_NAMES = {**ORGANS, "kidney left": ORGANS["left kidney"], "kidney right": ORGANS["right kidney"]}
_PARTS_OF_BOWEL = ("small bowel", "duodenum", "colon")


def read_mask_ids(path: Path) -> dict[int, int]:
    """Read the kit's label of each id, from lines such as `liver: 5` and `bowel: [18, 19, 20]`.

    Organs may be missing; `path` may be relative to the repository.

    Raises:
        UserError: no such file, not a table, an unknown organ, or an id that is not a positive integer or
            that two organs share.
    """
    found = next((place for place in (path, ROOT / path) if place.is_file()), None)
    if found is None:
        raise UserError(f"no table {path} (--mask-ids); there are some in {ROOT / 'configs' / 'masks'}")
    try:
        table = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{path} must hold lines such as `liver: 5`")
    labels: dict[int, int] = {}
    for organ, ids in table.items():
        if organ not in ORGANS:
            raise UserError(f"{path}: unknown organ {organ!r}; there are {', '.join(ORGANS)}")
        for identity in ids if isinstance(ids, list) else [ids]:
            if type(identity) is not int or identity < 1:
                raise UserError(f"{path}: {organ} needs whole numbers above 0, got {identity!r}")
            if labels.setdefault(identity, ORGANS[organ]) != ORGANS[organ]:
                raise UserError(f"{path}: two organs have the id {identity}")
    if not labels:
        raise UserError(f"{path} names no id")
    return labels


def read_dataset_ids(masks: Path) -> dict[int, int] | None:
    """Read the kit's label of each id from nnU-Net's dataset.json beside the folder `masks`, if there is one.

    Returns:
        The ids whose names `labels_of_names` knows; None without such a file.

    Raises:
        UserError: the file names none of the kit's organs.
    """
    path = masks.absolute().parent / "dataset.json"
    try:
        items = json.loads(path.read_text(encoding="utf-8"))["labels"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # there is none, or it is another program's
    # {"liver": 1} since version 2, {"1": "liver"} before
    pairs = ((value, key) if isinstance(value, str) else (key, value) for key, value in items)
    id_of = {name: int(identity) for name, identity in pairs if str(identity).isdecimal()}
    labels = labels_of_names(id_of)
    if not labels:
        raise UserError(f"{path} names none of {', '.join(ORGANS)}: name a table with --mask-ids")
    return {id_of[name]: label for name, label in labels.items()}


def labels_of_names(names: Iterable[str]) -> dict[str, int]:
    """Return the kit's label of each name of an organ, such as kidney_left or Left Kidney, and of no other.

    Small bowel, duodenum and colon count only where both small bowel and colon are named: half a bowel would
    teach that the rest is none.
    """
    plain = {name: " ".join(re.split(r"[\s_-]+", name.strip().lower())) for name in names}
    known = dict(_NAMES)
    if {"small bowel", "colon"} <= set(plain.values()):
        known |= dict.fromkeys(_PARTS_OF_BOWEL, ORGANS["bowel"])
    return {name: known[words] for name, words in plain.items() if words in known}
