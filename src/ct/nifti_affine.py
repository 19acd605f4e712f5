"""The affine of a NIfTI volume: its sform or its qform, whichever is valid."""

import numpy as np

from src.ct.series import Remark

_FLAT = 1e-3  # three unit axes are coplanar if their parallelepiped has less volume
_SAME_SIDE_COSINE = 0.7  # lowest one of an axis in two affines; a tilt shears the sform, but no qform


class AffineError(Exception):
    """A header without a valid geometry. The message is a short reason whose subject is the file."""


def choose_affine(
    sform: np.ndarray | None, qform: np.ndarray | None
) -> tuple[np.ndarray, tuple[Remark, ...]]:
    """Return the sform (4, 4), or the qform where there is no valid sform.

    There is a remark if an invalid sform was ignored, and a doubtful one if the two contradict. Either is
    None where its code is 0.

    Raises:
        AffineError: neither is valid.
    """
    problem, qform_problem = _problem(sform), _problem(qform)
    if problem is None:
        if qform_problem is not None or not _contradict(sform, qform):
            return sform, ()
        text = f"sform and qform contradict ({_letters(sform)} and {_letters(qform)})"
        return sform, (Remark(f"{text}: the orientation is uncertain", doubtful=True),)
    if qform_problem is None:
        return qform, () if sform is None else (Remark("sform is not valid: qform used"),)
    raise AffineError(qform_problem if sform is None else problem)


def _problem(affine: np.ndarray | None) -> str | None:
    """Return the reason why an affine is no geometry, None if it is one."""
    if affine is None or np.array_equal(affine, np.eye(4)):
        # Writers store the identity if the affine is unknown: no scanner has its first voxel at 0, 0, 0.
        return "orientation unknown: its affine is missing or the identity"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        return "has a singular affine"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < _FLAT:
        return "has a singular affine"
    return None


def _contradict(sform: np.ndarray, qform: np.ndarray) -> bool:
    """Return whether an axis is mirrored, or has another place in the order.

    A qform without rotation and origin is what programs leave behind that write the sform only.
    """
    if np.array_equal(qform, np.diag(np.diag(qform))):
        return False
    first, second = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (sform, qform))
    return bool(((first * second).sum(axis=0) < _SAME_SIDE_COSINE).any())


def _letters(affine: np.ndarray) -> str:
    """Return the side of the patient that each voxel axis points to, such as LPS."""
    main = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax(axis=0)
    return "".join(("RAS" if affine[row, axis] > 0 else "LPI")[row] for axis, row in enumerate(main))
