"""The organs that the ids of a label map stand for."""

from pathlib import Path

import yaml

from src.core.config import ROOT
from src.core.errors import UserError
from src.core.targets import ORGANS


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
