"""A run that is killed, or loses a worker of its cluster, is completed to the same result."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import prepare_data
from src.core.errors import UserError
from tests.helpers.dicom_files import write_series
from tests.helpers.folders import files_of

SCRIPT = Path(prepare_data.__file__).resolve()
N_SERIES = 10
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Ten series of 120 slices: long enough that a kill falls into the middle of one."""
    folder = tmp_path_factory.mktemp("long")
    for index in range(N_SERIES):
        write_series(folder / "train_images" / f"{index % 3}" / f"{index}", n_slices=120, rle=True)
    (folder / "train_images" / "0" / "0" / "999.dcm").write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    """What one run without interruption leaves."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(raw, output), check=True, capture_output=True)
    return files_of(output)


def command(raw, output):
    arguments = ["--input", raw, "--output", output, "--size", 32, "--jobs", 2, "--preview"]
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


@pytest.mark.parametrize("seed", range(4))
def test_prepare_data_resumes_after_sigkill(raw, undisturbed, tmp_path, seed):
    output, rng = tmp_path / "out", random.Random(seed)
    for n_finished in sorted(rng.sample(range(N_SERIES - 3), 2)):
        process = subprocess.Popen(command(raw, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda enough=n_finished: finished(output) >= enough and begun(output))
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # else the run was over before the kill
    subprocess.run(command(raw, output), check=True, capture_output=True)
    assert files_of(output) == undisturbed


def finished(output):
    return len(list(output.glob("images/*/[0-9]*/series.json")))


def begun(output):
    return list(output.glob("images/*/.*.partial"))


def test_prepare_data_on_a_cluster_that_loses_a_worker(raw, undisturbed, tmp_path):
    distributed = pytest.importorskip("distributed")
    output = tmp_path / "out"
    settings = {"processes": True, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, **settings) as cluster:
        victim = next(iter(cluster.scheduler_info["workers"]))
        with distributed.Client(cluster, set_as_default=False) as client:
            pid = client.run(os.getpid, workers=[victim])[victim]
        lost = threading.Thread(target=kill_in_the_middle, args=(pid, output))
        lost.start()
        options = f"--input {raw} --output {output} --size 32 --preview --cluster {cluster.scheduler_address}"
        prepare_data.main(options.split())
        lost.join()
    assert files_of(output) == undisturbed


def kill_in_the_middle(pid, output):
    """Kill once a series is finished and another one begun."""
    wait_until(lambda: finished(output) and begun(output))
    os.kill(pid, signal.SIGKILL)


def test_prepare_data_resumes_after_sigkill_during_overwrite(raw, undisturbed, tmp_path):
    output = tmp_path / "out"
    subprocess.run(command(raw, output), check=True, capture_output=True)
    for delay_s in (0.0, 0.005, 0.02):
        series_table = output / "series.csv"
        process = subprocess.Popen([*command(raw, output), "--overwrite"], stderr=subprocess.DEVNULL)
        wait_until(lambda table=series_table: not table.exists())
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(command(raw, output), check=True, capture_output=True)
        assert files_of(output) == undisturbed


def test_prepare_data_without_a_scheduler_is_one_line(tmp_path):
    pytest.importorskip("distributed")
    write_series(tmp_path / "raw", n_slices=1)
    options = f"--input {tmp_path / 'raw'} --output {tmp_path / 'out'} --cluster tcp://127.0.0.1:9"
    with pytest.raises(UserError, match="no Dask scheduler answers at tcp:"):
        prepare_data.main(options.split())


def wait_until(condition, limit_s=60):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "what the test waits for never happened"
        time.sleep(0.005)
