"""Series of the phantom read back with pydicom alone."""

from pathlib import Path

import numpy as np
import pydicom


def read_slices(folder: Path) -> list[tuple[pydicom.Dataset, np.ndarray]]:
    """(header, HU as int32) of every file, sign-extended from BitsStored as the standard asks."""
    slices = []
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        words = dataset.pixel_array.astype(np.uint16)
        shift = 16 - dataset.BitsStored
        words = (words << shift).view(np.int16 if dataset.PixelRepresentation else np.uint16) >> shift
        hu = words.astype(np.int32) * int(dataset.RescaleSlope) + int(dataset.RescaleIntercept)
        slices.append((dataset, hu))
    return slices


def restore_volume(folder: Path) -> np.ndarray:
    """HU (Z, Y, X) from the head down, in head-first supine axes, by position and orientation alone."""
    by_height = {}
    for dataset, hu in read_slices(folder):
        flip = int(dataset.ImageOrientationPatient[0])
        by_height[float(dataset.ImagePositionPatient[2])] = hu[::flip, ::flip]
    return np.stack([by_height[z_mm] for z_mm in sorted(by_height, reverse=True)])
