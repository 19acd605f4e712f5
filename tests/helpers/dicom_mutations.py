"""Damage for DICOM files: what disks, transfers and careless software do to them, and worse.

    for kind, damaged in mutations(path.read_bytes(), np.random.default_rng(seed)): ...

A generator in the same state gives the same damage. A kind that does not apply to a file (an RLE header where
there is none) gives the content back as it was, and `mutations` leaves it out.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

Rng = np.random.Generator
ABSURD: dict[str, tuple] = {
    "Rows": (0, 1, 65535),
    "Columns": (0, 1, 65535),
    "BitsAllocated": (0, 1, 7, 8, 32, 64),
    "BitsStored": (0, 17, 255),
    "SamplesPerPixel": (0, 3),
    "PixelRepresentation": (2, 65535),
    "NumberOfFrames": (b"0", b"-1", b"2", b"1000000"),
    "PixelSpacing": (b"0\\0", b"-1\\1", b"nan\\1", b"1e300\\1", b"1", b""),
    "RescaleSlope": (b"0", b"nan", b"inf", b"one"),
    "RescaleIntercept": (b"nan", b"-1e300", b""),
    "ImagePositionPatient": (b"nan\\0\\0", b"0\\0", b"1e308\\1e308\\1e308"),
    "ImageOrientationPatient": (b"0\\0\\0\\0\\0\\0", b"1\\0\\0\\1\\0\\0", b"nan\\0\\0\\0\\1\\0"),
    "PixelPaddingValue": (0, 65535),
}
"""Values that make no sense, by keyword: numbers are written as US, bytes as IS or DS."""
UIDS = [
    b"1.2.840.10008.1.2" + end
    for end in b" .1 .2 .1.99 .5 .4.50 .4.51 .4.57 .4.70 .4.80 .4.81 .4.90 .4.91 .4.201 .4.100".split(b" ")
] + [b"1.2.3", b""]
_PIXEL_DATA = 0x7FE00010
_ITEM = b"\xfe\xff\x00\xe0"


def mutations(content: bytes, rng: Rng) -> Iterator[tuple[str, bytes]]:
    """Damage of every kind that applies to the file, one after the other, as (kind, damaged content)."""
    for kind, damage in KINDS.items():
        damaged = damage(content, rng)
        if damaged != content:
            yield kind, damaged


def _elements(content: bytes) -> dict[int, RawDataElement]:
    """Top-level elements by tag, with the place of their values; of a deflated file, the file meta only."""
    found, place = {}, 132
    while content[place : place + 2] == b"\x02\x00":  # the file meta is explicit little endian in every file
        vr, long = content[place + 4 : place + 6].decode(), content[place + 4 : place + 6] == b"OB"
        start = place + (12 if long else 8)
        length = int.from_bytes(content[start - (4 if long else 2) : start], "little")
        tag = Tag(2, int.from_bytes(content[place + 2 : place + 4], "little"))
        found[tag] = RawDataElement(tag, vr, length, None, start, False, True)
        place = start + length
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(io.BytesIO(content))
    if dataset.file_meta.TransferSyntaxUID != pydicom.uid.DeflatedExplicitVRLittleEndian:
        raw = [dataset.get_item(tag) for tag in dataset.keys()]  # noqa: SIM118  (iteration would decode)
        found |= {element.tag: element for element in raw if isinstance(element, RawDataElement)}
    return found


def _start(element: RawDataElement) -> int:
    """Where the element's tag stands."""
    return element.value_tell - (12 if _length_size(element) == 4 and not element.is_implicit_VR else 8)


def _length_size(element: RawDataElement) -> int:
    long = element.is_implicit_VR or element.VR in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN", "UT")
    return 4 if long else 2


def _set_length(content: bytes, element: RawDataElement, length: int) -> bytes:
    size = _length_size(element)
    raw = (length % (1 << 8 * size)).to_bytes(size, "little" if element.is_little_endian else "big")
    return content[: element.value_tell - size] + raw + content[element.value_tell :]


def _set_value(content: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """Replace the element's value, or insert the element where it is missing."""
    elements = _elements(content)
    if tag in elements and elements[tag].length != 0xFFFFFFFF:
        element = elements[tag]
        resized = _set_length(content, element, len(value))
        return resized[: element.value_tell] + value + resized[element.value_tell + element.length :]
    behind = min((other for other in elements if other > tag), default=None)
    if behind is None:
        return content
    place, model = _start(elements[behind]), elements[behind]
    order = "little" if model.is_little_endian else "big"
    length = len(value).to_bytes(4 if model.is_implicit_VR else 2, order)
    head = (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)
    return content[:place] + head + (b"" if model.is_implicit_VR else vr) + length + value + content[place:]


def _pixels_at(content: bytes) -> int:
    """Where pixel data starts; the middle of a deflated file, which shows no elements."""
    element = _elements(content).get(_PIXEL_DATA)
    return element.value_tell if element else len(content) // 2


def _codestream_at(content: bytes) -> int | None:
    """Where the first codestream starts, behind the offset table; None in a native file."""
    start = _pixels_at(content)
    if content[start : start + 4] != _ITEM:
        return None
    return start + 16 + int.from_bytes(content[start + 4 : start + 8], "little")


def _overwrite(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def _cut(content: bytes, rng: Rng, *, part: str) -> bytes:
    pixels = _pixels_at(content)
    first, last = {"preamble": (0, 132), "header": (132, pixels), "pixel data": (pixels, len(content))}[part]
    return content[: rng.integers(first, last)]


def _flip(content: bytes, rng: Rng, *, part: str) -> bytes:
    pixels = _pixels_at(content)
    first, last = {"header": (132, pixels), "pixel data": (pixels, len(content))}[part]
    damaged = bytearray(content)
    for place in rng.integers(first, last, rng.integers(1, 21)):
        damaged[place] ^= 1 << rng.integers(8)
    return bytes(damaged)


def _wrong_length(content: bytes, rng: Rng) -> bytes:
    element = rng.choice(list(_elements(content)))
    length = rng.choice([0, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, int(rng.integers(1 << 20))])
    return _set_length(content, _elements(content)[element], int(length))


def _wrong_item_length(content: bytes, rng: Rng) -> bytes:
    items, place = [], _codestream_at(content)
    if place is None:
        return content
    place = _pixels_at(content)
    while content[place : place + 4] == _ITEM:
        items.append(place)
        place += 8 + int.from_bytes(content[place + 4 : place + 8], "little")
    length = rng.choice([0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, int(rng.integers(1 << 16))])
    return _overwrite(content, rng.choice(items) + 4, int(length).to_bytes(4, "little"))


def _pixel_data_length(content: bytes, rng: Rng, *, change: str) -> bytes:
    element = _elements(content).get(_PIXEL_DATA)
    if element is None or element.length == 0xFFFFFFFF:
        return content
    by = {"larger": int(rng.integers(1, 1 << 20)), "smaller": -int(rng.integers(1, element.length)), "odd": 1}
    return _set_length(content, element, element.length + by[change])


def _absurd(content: bytes, rng: Rng, *, keyword: str) -> bytes:
    elements = _elements(content)
    if _PIXEL_DATA not in elements:
        return content
    value = ABSURD[keyword][rng.integers(len(ABSURD[keyword]))]
    if isinstance(value, int):
        order = "little" if elements[_PIXEL_DATA].is_little_endian else "big"
        return _set_value(content, Tag(keyword), b"US", value.to_bytes(2, order))
    vr = b"IS" if keyword == "NumberOfFrames" else b"DS"
    return _set_value(content, Tag(keyword), vr, value + b" " * (len(value) % 2))


def _without(content: bytes, rng: Rng) -> bytes:
    """Leave out one element of the image's description, group 0028 or position and orientation."""
    elements = _elements(content)
    tags = [tag for tag in elements if tag >> 16 in (0x0020, 0x0028)]
    if not tags:
        return content
    element = elements[int(rng.choice(tags))]
    return content[: _start(element)] + content[element.value_tell + element.length :]


def _block(content: bytes, rng: Rng) -> slice:
    size = int(rng.integers(1, min(513, (len(content) - 132) // 2)))
    start = int(rng.integers(132, len(content) - size))
    return slice(start, start + size)


def _zero_block(content: bytes, rng: Rng) -> bytes:
    block = _block(content, rng)
    return _overwrite(content, block.start, bytes(block.stop - block.start))


def _double_block(content: bytes, rng: Rng) -> bytes:
    block = _block(content, rng)
    return content[: block.stop] + content[block.start :]


def _append(content: bytes, rng: Rng) -> bytes:
    return content + rng.bytes(int(rng.integers(1, 1000)))


def _other_syntax(content: bytes, rng: Rng) -> bytes:
    uid = UIDS[rng.integers(len(UIDS))]
    uid += b"\0" * (len(uid) % 2)
    longer = len(uid) - _elements(content)[0x00020010].length
    changed = _set_value(content, 0x00020010, b"UI", uid)
    group = _elements(content)[0x00020000]
    length = int.from_bytes(content[group.value_tell : group.value_tell + 4], "little") + longer
    return _overwrite(changed, group.value_tell, length.to_bytes(4, "little"))


def _offset_table(content: bytes, rng: Rng) -> bytes:
    if _codestream_at(content) is None:
        return content
    start, behind = _pixels_at(content), _codestream_at(content) - 8
    offsets = rng.choice([0, 4, 8, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFF, len(content)], int(rng.integers(1, 4)))
    table = offsets.astype("<u4").tobytes()
    return content[:start] + _ITEM + len(table).to_bytes(4, "little") + table + content[behind:]


def _rle_header(content: bytes, rng: Rng) -> bytes:
    at = _codestream_at(content)
    if at is None or int.from_bytes(content[at : at + 4], "little") > 15:
        return content
    value = rng.choice([0, 1, 3, 15, 63, 64, 65, 200, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFF])
    return _overwrite(content, at + 4 * int(rng.integers(4)), int(value).to_bytes(4, "little"))


def _frame_header(content: bytes, rng: Rng) -> bytes:
    """Sizes, depth or components that a JPEG, JPEG-LS (SOF) or JPEG 2000 (SIZ) codestream states."""
    at = _codestream_at(content)
    if at is None:
        return content
    for marker in (b"\xff\x51", b"\xff\xc0", b"\xff\xc1", b"\xff\xc3", b"\xff\xf7"):
        place = content.find(marker, at, at + 1024)
        if place >= 0:
            jpeg_2000 = marker == b"\xff\x51"
            fields = {6: 4, 10: 4, 14: 4, 22: 4, 26: 4, 38: 2, 40: 1, 41: 1} if jpeg_2000 else {}
            fields = fields or {2: 2, 4: 1, 5: 2, 7: 2, 9: 1, 10: 1, 11: 1}
            offset = int(rng.choice(list(fields)))
            limit = 1 << 8 * fields[offset]
            value = rng.choice([0, 1, 7, 8, 12, 16, 63, 255, 4096, 65535, limit - 1]) % limit
            return _overwrite(content, place + offset, int(value).to_bytes(fields[offset], "big"))
    return content


KINDS: dict[str, Callable[[bytes, Rng], bytes]] = {
    **{f"cut in the {part}": partial(_cut, part=part) for part in ("preamble", "header", "pixel data")},
    "cut the last byte": lambda content, rng: content[:-1],
    **{f"flipped bits in the {part}": partial(_flip, part=part) for part in ("header", "pixel data")},
    "wrong length of an element": _wrong_length,
    "wrong length of an item": _wrong_item_length,
    **{
        f"{change} length of pixel data": partial(_pixel_data_length, change=change)
        for change in ("larger", "smaller", "odd")
    },
    **{f"absurd {keyword}": partial(_absurd, keyword=keyword) for keyword in ABSURD},
    "missing element": _without,
    "zeroed block": _zero_block,
    "doubled block": _double_block,
    "appended garbage": _append,
    "another transfer syntax": _other_syntax,
    "wrong offset table": _offset_table,
    "wrong RLE header": _rle_header,
    "wrong frame header": _frame_header,
}
