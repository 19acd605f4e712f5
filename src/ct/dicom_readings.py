"""Other ways to read pixels of DICOM files whose headers are wrong, and images that are derived from a CT."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from src.ct.dicom_header import Header
from src.ct.series import Remark

_HU_UNITS = ("", "HU", "HU_MOD", "US")
_HOUNSFIELD = re.compile("HOU?N")  # "Houndsfield Unit" occurs
_MAPS = {
    "perfusion map": "PERFUSION CBF CBV MTT TTP TMAX RCBF RCBV RMTT TTD TTS PERMEABILITY",
    "map of a material": "IODINE IOD WATER CALCIUM URIC FAT VNC VUE ZEFF RHO DENSITY",
    "projection": "MIP MINIP PROJECTION",
    "map, not an image": "MAP MASK SEGMENTATION SUBTRACTION",
}
_MAP_OF_WORD = {word: name for name, words in _MAPS.items() for word in words.split()}

Reading = tuple[Remark, list[Header]]


def derived_remarks(headers: Sequence[Header]) -> Iterator[Remark]:
    """Yield a doubtful remark where ImageType (0008,0008) or RescaleType name something else than HU."""
    for image_type in sorted({header.image_type for header in headers}):
        words = re.findall("[A-Z]+", image_type.upper())
        named = [_MAP_OF_WORD[word] for word in words if word in _MAP_OF_WORD]
        if named:
            yield Remark(f"ImageType {image_type} means a {named[0]}", doubtful=True)
            break
    for unit in sorted({header.rescale_type for header in headers}):
        if unit.upper() not in _HU_UNITS and not _HOUNSFIELD.match(unit.upper()):
            yield Remark(f"RescaleType {unit} is an unknown unit", doubtful=True)
            break


def other_readings(headers: Sequence[Header]) -> Iterator[Reading]:
    """Yield headers under which the same files would have other values, and what to say of each.

    Sign and place of the bits are facts of the file: a reading that alone makes a CT is right. A rescale is
    not: that another one makes a CT leaves the series doubtful.
    """
    header = headers[0]
    yield (
        Remark(f"PixelRepresentation is wrong: read as {'unsigned' if header.signed else 'signed'}"),
        [replace(each, signed=not each.signed) for each in headers],
    )
    free = header.bits_allocated - header.bits_stored
    if any(each.shift_bits for each in headers):
        yield Remark("HighBit is wrong: ignored"), [replace(each, shift_bits=0) for each in headers]
        yield (
            Remark("HighBit and PixelRepresentation are wrong: ignored"),
            [replace(each, shift_bits=0, signed=not each.signed) for each in headers],
        )
    elif free:
        yield (
            Remark(f"HighBit is wrong: the upper {header.bits_stored} bits are read"),
            [replace(each, shift_bits=each.bits_allocated - each.bits_stored) for each in headers],
        )
    if free:
        all_bits = [replace(each, bits_stored=each.bits_allocated, shift_bits=0) for each in headers]
        yield Remark(f"BitsStored is wrong: all {header.bits_allocated} bits are read"), all_bits
    for intercept, text in ((-1024.0, "-1024"), (0.0, "0")):
        if any(each.intercept != intercept for each in headers):
            yield (
                Remark(f"RescaleIntercept is missing or wrong: read with {text}", doubtful=True),
                [replace(each, intercept=intercept) for each in headers],
            )
    rescales = Counter((each.slope, each.intercept) for each in headers)
    if len(rescales) > 1:
        (slope, intercept), _ = rescales.most_common(1)[0]
        yield (
            Remark("rescales differ between slices: all are read with the commonest", doubtful=True),
            [replace(each, slope=slope, intercept=intercept) for each in headers],
        )
    yield (
        Remark("PhotometricInterpretation is wrong: read inverted", doubtful=True),
        [replace(each, inverted=not each.inverted) for each in headers],
    )
