"""Packed series: written whole, once, checked against their source, shared by processes."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import prepare_data
from src.core.errors import UserError
from src.data.packed import PackedSlices, SeriesCache
from src.data.prepared import PreparedDataset, image_folder, slice_name
from tests.helpers.dicom_files import write_series
from tests.helpers.voco_files import draw_noise, write_prepared

KEY = ("10", "100")


@pytest.fixture
def noise(tmp_path):
    return PreparedDataset.open(write_prepared(tmp_path / "set", draw_noise, series=2))


def files_of(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_packed_slices_equal_the_prepared_ones(noise, tmp_path):
    packed = PackedSlices(noise, ("wide", "soft"), tmp_path / "cache")
    for _ in range(2):  # packed, then read
        for key in noise.slice_counts:
            expected = noise.read_slices(*key, [3, 3, 0])[..., [2, 0]]
            np.testing.assert_array_equal(packed.read(key, [3, 3, 0]), expected, strict=True)
    assert [path.stat().st_size for path in files_of(tmp_path / "cache")] == [128 + 12 * 48 * 48 * 2] * 2
    PackedSlices(noise, ("soft",), tmp_path / "cache").read(KEY, [0])
    assert len(list((tmp_path / "cache").iterdir())) == 2  # other windows are in another folder


def test_packed_slices_read_no_png_again(noise, tmp_path):
    PackedSlices(noise, ("soft",), tmp_path / "cache").read(KEY, [0])
    folder = image_folder(noise.folder, *KEY)
    version = folder.stat().st_mtime_ns
    for path in folder.glob("*.png"):
        path.unlink()
    os.utime(folder, ns=(version, version))
    expected = draw_noise(0, 7)[None, ..., :1]
    np.testing.assert_array_equal(PackedSlices(noise, ("soft",), tmp_path / "cache").read(KEY, [7]), expected)


def test_packed_slices_are_made_anew_after_prepare_data_overwrite(tmp_path):
    raw, output, cache = tmp_path / "raw", tmp_path / "set", tmp_path / "cache"
    command = ["--input", str(raw), "--output", str(output), "--size", "32", "--jobs", "1", "--overwrite"]
    found = []
    for add_hu in (0, 100):
        write_series(raw / "train_images" / "10" / "100", n_slices=6, add_hu=add_hu)
        prepare_data.main(command)
        prepared = PreparedDataset.open(output)
        read = PackedSlices(prepared, ("soft",), cache).read(KEY, range(6))
        np.testing.assert_array_equal(read, prepared.read_slices(*KEY, range(6))[..., :1])
        found += files_of(cache)
        assert len(files_of(cache)) == 1  # an older version is removed
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"PK\x03\x04" + bytes(99), b"\x93NUMPY\x01\x00v\x00" + b"(" * 118, None]
)
def test_packed_slices_replace_a_damaged_file(noise, tmp_path, content):
    packed = PackedSlices(noise, ("soft",), tmp_path / "cache")
    expected = packed.read(KEY, [5])
    (path,) = files_of(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    np.testing.assert_array_equal(packed.read(KEY, [5]), expected)
    assert len(files_of(tmp_path / "cache")) == 1


def test_packed_slices_of_a_damaged_series_leave_no_file(noise, tmp_path):
    (image_folder(noise.folder, *KEY) / slice_name(11)).write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        PackedSlices(noise, ("soft",), tmp_path / "cache").read(KEY, [0])
    assert not files_of(tmp_path / "cache")


def test_series_cache_removes_other_versions_of_its_series_only(noise, tmp_path):
    cache = SeriesCache(tmp_path / "cache", noise.folder, ())
    for name in ("1.2", "1.2.3", "1.2.3.4"):
        source = tmp_path / "set" / "images" / "10" / name
        source.mkdir()
        for version in (5, 7):
            os.utime(source, ns=(version, version))
            cache.open(source, (1, 2), lambda: [np.zeros(2, np.uint8)])
    names = sorted(path.name for path in files_of(tmp_path / "cache"))
    assert names == [f"{name}.{7:016x}.npy" for name in ("1.2", "1.2.3", "1.2.3.4")]


def pack(folder: Path, cache: Path) -> np.ndarray:
    return PackedSlices(PreparedDataset.open(folder), ("soft",), cache).read(KEY, range(12))


def test_packed_slices_may_be_made_by_two_processes_at_once(noise, tmp_path):
    """Each waits for the other before the last slice, and both write."""
    context = get_context("fork")
    barrier = context.Barrier(2)

    def write():
        def rows():
            yield np.full(9, 1, np.uint8)
            barrier.wait(30)
            yield np.full(9, 2, np.uint8)

        opened = SeriesCache(tmp_path / "cache", noise.folder, ()).open(
            image_folder(noise.folder, *KEY), (2, 9), rows
        )
        os._exit(int(opened.sum() != 27))

    both = [context.Process(target=write) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(files_of(tmp_path / "cache")) == 1


def test_packed_slices_of_a_killed_process_are_made_again(noise, tmp_path):
    cache = tmp_path / "cache"
    code = (
        "import time, numpy as np; from pathlib import Path; from src.data.packed import SeriesCache\n"
        f"def rows():\n    yield np.ones(9, np.uint8)\n    print('half', flush=True)\n    time.sleep(60)\n"
        f"SeriesCache(Path({str(cache)!r}), Path({str(noise.folder)!r}), ()).open("
        f"Path({str(image_folder(noise.folder, *KEY))!r}), (2, 9), rows)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    (left,) = files_of(cache)
    made = SeriesCache(cache, noise.folder, ())
    source = image_folder(noise.folder, *KEY)
    assert made.open(source, (2, 9), lambda: [np.full(9, 3, np.uint8)] * 2).sum() == 54
    assert left in files_of(cache)  # another process may still be writing it
    old = time.time() - 2 * 3600
    os.utime(left, (old, old))
    os.utime(source)  # prepared again
    made.open(source, (2, 9), lambda: [np.full(9, 4, np.uint8)] * 2)
    (path,) = files_of(cache)
    assert np.load(path).sum() == 72


def test_packed_slices_on_a_full_disk_are_one_line(noise, tmp_path):
    """A limit of the size of files fails as a full disk does, but for the error's number."""
    code = (
        "import resource, signal; from pathlib import Path; from tests.data.test_packed import pack\n"
        "from src.core.errors import exit_on_user_error\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "with exit_on_user_error():\n"
        f"    pack(Path({str(noise.folder)!r}), Path({str(tmp_path / 'cache')!r}))"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode != 0 and len(run.stderr.splitlines()) == 1
    assert "cannot write the cache" in run.stderr and "File too large" in run.stderr
    assert not files_of(tmp_path / "cache")
