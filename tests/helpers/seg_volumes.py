"""Label maps of whole series, and their clean-up slice by slice and by components of the volume."""

import numpy as np
from scipy import ndimage

from src.core.targets import ORGANS
from src.seg.components import MIN_COMPONENT_ML, MIN_SHARE, ONE_LABEL, ONE_SIDED, ComponentScan

LIVER, SPLEEN, LEFT_KIDNEY, RIGHT_KIDNEY, BOWEL = ORGANS.values()
VOXEL_ML = 0.01  # so 100 voxels are 1 ml
SWAPPED = np.uint8([0, LIVER, SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, BOWEL])
STRUCTURE = np.zeros((3, 3, 3), dtype=bool)
STRUCTURE[1] = True
STRUCTURE[:, 1, 1] = True


def scan_of(volume):
    """The first pass over the slices of (slices, H, W)."""
    scan = ComponentScan()
    for mask in volume:
        scan.add(mask)
    return scan


def clean(volume, voxel_ml=VOXEL_ML):
    """Both passes."""
    clean_up = scan_of(volume).clean_up(voxel_ml)
    return np.array([clean_up.apply(mask, index) for index, mask in enumerate(volume)]).reshape(volume.shape)


def clean_whole(volume, voxel_ml):
    """The same by 3D components of the volume."""
    voxels_ml = np.broadcast_to(np.reshape(voxel_ml, (-1, 1, 1)), volume.shape)
    cleaned = volume.copy()
    for organ, label in ORGANS.items():
        if "kidney" in organ:
            continue
        components, count = ndimage.label(volume == label, STRUCTURE)
        ml = ndimage.sum_labels(voxels_ml, components, np.arange(1, count + 1))
        limit_ml = max([MIN_COMPONENT_ML, *(MIN_SHARE[organ] * ml)])
        cleaned[np.isin(components, 1 + np.flatnonzero(ml < limit_ml))] = 0
    kidneys = np.isin(volume, (LEFT_KIDNEY, RIGHT_KIDNEY))
    components, count = ndimage.label(kidneys, STRUCTURE)
    cleaned[kidneys] = 0
    parts = [part for number in range(1, count + 1) for part in name_kidney(volume, components == number)]
    for label in (LEFT_KIDNEY, RIGHT_KIDNEY):
        ml = [voxels_ml[part].sum() for name, part in parts if name == label]
        limit_ml = max([MIN_COMPONENT_ML, *(MIN_SHARE["left kidney"] * np.array(ml))])
        for name, part in parts:
            if name == label and voxels_ml[part].sum() >= limit_ml:
                cleaned[part] = label
    return cleaned


def name_kidney(volume, component):
    """A label and a bool volume for each kidney that a kidney component consists of."""
    on_left = component.copy()
    on_left[..., : volume.shape[2] // 2] = False
    by_side = on_left.sum() / component.sum()
    by_label = (volume[component] == LEFT_KIDNEY).mean()
    for share, least in ((by_side, ONE_SIDED), (by_label, ONE_LABEL), (by_side, ONE_LABEL)):
        if share >= least:
            return [(LEFT_KIDNEY, component)]
        if share <= 1 - least:
            return [(RIGHT_KIDNEY, component)]
    return [(LEFT_KIDNEY, on_left), (RIGHT_KIDNEY, component & ~on_left)]


def draw_blobs(seed):
    """A label map (slices, H, W) of all organs, in grains or branches that fill the volume."""
    rng = np.random.default_rng(seed)
    shape = rng.integers((2, 12, 6), (14, 44, 22)) * (1, 1, 2)  # an even width has two halves
    noise = rng.normal(size=(6, *shape))
    smooth = [ndimage.gaussian_filter(field, rng.uniform(0, 2.5, 3)) for field in noise]
    smooth = np.array([field / field.std() for field in smooth])
    smooth[0] += rng.uniform(0, 1.5)  # background
    return smooth.argmax(axis=0).astype(np.uint8)


def draw_box(volume, label, slices, rows, columns):
    """Fill a box of the volume, given by its range along each axis; returns its number of voxels."""
    box = volume[slice(*slices), slice(*rows), slice(*columns)]
    box[:] = label
    return box.size
