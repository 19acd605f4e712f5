"""JPEG by ITU-T T.81: lossless, baseline and extended. Plain rather than short or fast."""

from collections.abc import Sequence

import numpy as np


def jpeg_lossless(words: np.ndarray, precision: int, predictor: int) -> bytes:
    """Encode unsigned words (rows, cols) as JPEG lossless: ITU-T T.81 annex H, SOF3, predictor 1 or 4."""
    values = words.astype(np.int64)
    left, above = np.roll(values, 1, axis=1), np.roll(values, 1, axis=0)
    predicted = left.copy() if predictor == 1 else left + above - np.roll(above, 1, axis=1)
    predicted[0], predicted[1:, 0] = left[0], above[1:, 0]  # no neighbour above, and none at the left
    predicted[0, 0] = 1 << precision - 1
    differences = (values - predicted + 32767) % 65536 - 32767  # -32767 ... 32768
    bits = []
    for difference in differences.ravel().tolist():
        category, extra = _category(difference)
        bits.append(f"{category:05b}" + ("" if category == 16 else extra))
    scan = bytes([1, 1, 0, predictor, 0, 0])
    return _jpeg(0xC3, words.shape, precision, [_huffman_table(0x00, 5, range(17))], scan, bits)


def jpeg_lossy(words: np.ndarray, precision: int) -> bytes:
    """Encode unsigned words (rows, cols) by DCT, quantised by 1: T.81 baseline (8 bits) or extended (12)."""
    rows, cols = words.shape
    padded = np.pad(words.astype(float), ((0, -rows % 8), (0, -cols % 8)), mode="edge") - (1 << precision - 1)
    blocks = padded.reshape(len(padded) // 8, 8, -1, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    frequency, place = np.mgrid[:8, :8]
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) * np.where(frequency == 0, 8**-0.5, 0.5)
    zigzag = sorted(np.ndindex(8, 8), key=lambda uv: (sum(uv), uv[sum(uv) % 2 == 0]))
    coefficients = np.rint(basis @ blocks @ basis.T).astype(int)[:, *np.transpose(zigzag)]  # (blocks, 64)
    symbols = [0x00, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 15))]
    codes = {symbol: f"{index:08b}" for index, symbol in enumerate(symbols)}  # end of block, 16 zeros, ...
    bits, previous = [], 0
    for first, *others in coefficients.tolist():
        category, extra = _category(first - previous)
        bits.append(f"{category:05b}{extra}")
        previous, run = first, 0
        for value in others:
            if value == 0:
                run += 1
                continue
            category, extra = _category(value)
            bits.append(codes[0xF0] * (run // 16) + codes[run % 16 << 4 | category] + extra)
            run = 0
        bits.append(codes[0x00] if run else "")
    tables = [
        (0xDB, bytes([0, *[1] * 64])),
        _huffman_table(0x00, 5, range(16)),
        _huffman_table(0x10, 8, symbols),
    ]
    start = 0xC0 if precision == 8 else 0xC1
    return _jpeg(start, words.shape, precision, tables, bytes([1, 1, 0, 0, 63, 0]), bits)


def _category(value: int) -> tuple[int, str]:
    """Magnitude category of a coefficient and the bits that follow it: T.81 tables F.1 and H.2."""
    size = abs(value).bit_length()
    return size, f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else ""


def _huffman_table(place: int, length: int, symbols: Sequence[int]) -> tuple[int, bytes]:
    """A table whose codes all have the same length: not short, but plain."""
    counts = [len(symbols) if bits == length else 0 for bits in range(1, 17)]
    return 0xC4, bytes([place, *counts, *symbols])


def _jpeg(
    start: int, shape: tuple[int, int], precision: int, tables: list, scan: bytes, bits: list[str]
) -> bytes:
    frame = bytes([precision, *shape[0].to_bytes(2, "big"), *shape[1].to_bytes(2, "big"), 1, 1, 0x11, 0])
    segments = (
        bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
        for marker, body in ((start, frame), *tables, (0xDA, scan))
    )
    entropy = "".join(bits)
    entropy += "1" * (-len(entropy) % 8)
    coded = int(entropy, 2).to_bytes(len(entropy) // 8, "big").replace(b"\xff", b"\xff\x00")
    return b"\xff\xd8" + b"".join(segments) + coded + b"\xff\xd9"
