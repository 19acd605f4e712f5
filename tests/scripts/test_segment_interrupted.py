"""segment.py gives the same files when it is interrupted or distributed, in constant memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import segment
from src.data.prepared import image_folder, slice_name
from tests.helpers.folders import files_of
from tests.helpers.seg_files import half_written, lengthen, run_segment, write_masked, write_pair
from tests.helpers.two_processes import run_two

pytestmark = pytest.mark.slow

SCRIPT = Path(segment.__file__).resolve()
N_SERIES = 6


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Series of 60 slices, long enough for a signal in the middle of one, and their masks."""
    folder = tmp_path_factory.mktemp("long")
    data = lengthen(write_masked(folder / "set", series=N_SERIES), 60)
    (image_folder(data, "13", "103") / slice_name(40)).unlink()
    model, masks = write_pair(folder / "run"), folder / "masks"
    assert run_segment(model, data, "--output", masks, "--preview").status == 0
    assert len(list(masks.glob("preview/*/*.png"))) == N_SERIES - 1
    return SimpleNamespace(data=data, model=model, masks=masks)


def command(long, output):
    return ["--model", long.model, "--data", long.data, "--output", output, "--preview"]


def start(long, output, **options):
    given = [sys.executable, SCRIPT, *command(long, output), "--workers", "0"]
    return subprocess.Popen(
        given,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        preexec_fn=heed_ctrl_c,
        **options,
    )


def heed_ctrl_c():
    """As in a terminal: processes started in the background ignore SIGINT, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_in_the_middle(process, output):
    """Stop a run between its first finished series and its last."""
    wait_until(lambda: in_the_middle(output))
    process.send_signal(signal.SIGSTOP)
    while not in_the_middle(output):  # it went on before the signal arrived
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: in_the_middle(output))
        process.send_signal(signal.SIGSTOP)


def in_the_middle(output):
    """Whether one series is finished and another is begun."""
    return list(output.glob("[0-9]*/[0-9]*/")) and list(output.glob("[0-9]*/.*.partial"))


def test_segment_completes_a_killed_run(long, tmp_path):
    output = tmp_path / "masks"
    process = start(long, output, stdout=subprocess.DEVNULL)
    stop_in_the_middle(process, output)
    process.kill()
    assert process.wait() == -signal.SIGKILL  # else the run had ended before
    assert half_written(output) and not (output / "organs.csv").exists()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("[0-9]*/[0-9]*/*")}
    assert 0 < len(list(output.glob("[0-9]*/[0-9]*/"))) < N_SERIES - 1
    assert run_segment(long.model, long.data, "--output", output, "--preview").status == 0
    assert not half_written(output)
    assert files_of(output) == files_of(long.masks)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_segment_keeps_whole_series_after_ctrl_c(long, tmp_path):
    output = tmp_path / "masks"
    process = start(long, output, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stop_in_the_middle(process, output)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: what was finished is kept" and "Traceback" not in errors
    assert not half_written(output)
    whole = files_of(long.masks)
    kept = {name: data for name, data in files_of(output).items() if name != "segmentation.json"}
    assert kept and kept.items() < whole.items()


def test_segment_on_two_processes_gives_the_files_of_one(long, tmp_path):
    output = tmp_path / "masks"
    shutil.copytree(long.masks / "10", output / "10")
    shutil.copy(long.masks / "segmentation.json", output)
    done = run_two("segment.py", command(long, output))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("6 series, 1 of them segmented before") == 1  # printed by one process
    assert "1 series could not be segmented" in done.stderr
    assert files_of(output) == files_of(long.masks)


def test_segment_ends_in_one_line_if_another_process_fails(long, tmp_path):
    output = tmp_path / "masks"
    shutil.copytree(long.masks, output)
    shutil.rmtree(output / "11")
    (output / "11").write_bytes(b"")  # in place of a folder of the second process
    done = run_two("segment.py", command(long, output))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0
    assert len(lines) == 1 and "process 0 lost the others" in lines[0], done.stderr[-3000:]
    assert "NotADirectoryError" in done.stderr  # of the other process


MEMORY = """
import sys
from pathlib import Path
import torch
import segment

torch.set_num_threads(1)
*given, short, long = sys.argv[1:]
for data in (short, short, long):
    segment.main([*given, "--data", data, "--overwrite"])
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line))
"""


def test_segment_memory_does_not_grow_with_the_length_of_a_series(tmp_path):
    size, short, long = 64, 60, 600
    model = write_pair(tmp_path / "run", size=size, only="liver")  # one component for any length
    sets = [lengthen(write_masked(tmp_path / f"{n}", size=size, series=1), n) for n in (short, long)]
    arguments = ["--model", model, "--output", tmp_path / "masks", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments, *sets],
        cwd=SCRIPT.parent,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # freed memory is returned at once
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [1024 * int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    assert len(list(tmp_path.glob("masks/10/100/*.png"))) == long and len(peaks) == 3
    masks_alone = (long - short) * size**2  # 2 MB; probabilities would take 53 MB
    assert peaks[2] - peaks[1] < masks_alone


def wait_until(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.002)
