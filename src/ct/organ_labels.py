"""Labels of organ masks, and YAML tables of which id of a segmentation is which organ."""

from pathlib import Path
from types import MappingProxyType

import yaml

from src.core.config import ROOT
from src.core.errors import UserError

ORGANS = MappingProxyType({"liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "bowel": 5})
"""The labels of masks; 0 is background."""


def read_mask_ids(path: Path) -> dict[int, int]:
    """The kit's label of each id, from lines such as `liver: 5` and `bowel: [18, 19, 20]`.

    An organ that is not named has no label; `path` may be relative to the repository.

    Raises:
        UserError: no such file, not a table, an unknown organ, an id that is no whole number above 0, or that
            two organs claim.
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
