"""The curves of a run, drawn from the table that the run itself writes."""

import errno

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from src.core.errors import UserError
from src.core.log import MetricsLog
from src.report.curves import main, plot_metrics, read_metrics

FIGURES = {
    "loss": 0.9,
    "loss_positive": 0.5,
    "loss_negative": 0.4,
    "intra_placing": 0.6,
    "cross_placing": 0.4,
    "cross_low": 0.3,
    "cross_high": 0.5,
    "positive_similarity": 0.7,
    "negative_similarity": 0.2,
    "embedding_std": 0.8,
    "teacher_distance": 0.01,
    "lr": 1e-4,
}
BAND = (210, 228, 240)  # matplotlib's first colour at a fifth, over white


def write_run(folder, rows, config="grid: 3\ngrid_z: 1\n"):
    """A run's folder with one row a dict, ten steps apart."""
    log = MetricsLog(folder)
    for number, row in enumerate(rows, start=1):
        log.log(10 * number, **row)
    log.close()
    (folder / "config.yaml").write_text(config)
    return folder


def read_image(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(int)


def band_pixels(path):
    return int((np.abs(read_image(path) - BAND).max(-1) <= 3).sum())


def test_plot_metrics_draws_panels_with_figures_only(tmp_path):
    whole = read_image(plot_metrics(write_run(tmp_path / "a", [FIGURES] * 5)))
    only_losses = {name: value for name, value in FIGURES.items() if name.startswith("loss")}
    short = read_image(plot_metrics(write_run(tmp_path / "b", [only_losses] * 5)))
    assert whole.shape[0] == 3 * short.shape[0] and whole.shape[1] == short.shape[1]
    assert (short[:, short.shape[1] // 2 + 40 :] == 255).all(), "one panel fills the left half alone"


def test_plot_metrics_draws_the_interval_as_a_band(tmp_path):
    narrow = [FIGURES | {"cross_low": 0.38, "cross_high": 0.42}] * 5
    none = [{name: value for name, value in FIGURES.items() if name not in ("cross_low", "cross_high")}] * 5
    sizes = [
        band_pixels(plot_metrics(write_run(tmp_path / name, rows)))
        for name, rows in (("wide", [FIGURES] * 5), ("narrow", narrow), ("none", none))
    ]
    assert sizes[0] > 3 * sizes[1] > 0 and sizes[2] < sizes[1] / 3


def test_plot_metrics_draws_the_chance_of_the_grid(tmp_path):
    pictures = [
        read_image(plot_metrics(write_run(tmp_path / f"{grid}{planes}", [FIGURES] * 5, config)))
        for grid, planes, config in ((3, 1, "grid: 3\n"), (3, 4, "grid: 3\ngrid_z: 4\n"), (6, 1, "grid: 6\n"))
    ]
    assert (pictures[0] != pictures[1]).any()  # 1 in 9, 1 in 36
    np.testing.assert_array_equal(pictures[1], pictures[2])  # 1 in 36 both


def test_plot_metrics_draws_one_row_and_late_figures(tmp_path):
    only_in_legend = band_pixels(plot_metrics(write_run(tmp_path / "one", [FIGURES])))
    late = [{"loss": 1.0}, FIGURES, {"loss": 0.8, "cross_placing": float("nan")}, FIGURES]
    metrics = read_metrics(write_run(tmp_path / "late", late) / "metrics.csv")
    assert metrics["cross_placing"].isna().tolist() == [True, False, True, False]
    # two measured rows make a band over the gap between them
    assert band_pixels(plot_metrics(tmp_path / "late")) > 10 * only_in_legend > 0


def test_plot_metrics_refuses_a_run_without_rows(tmp_path):
    with pytest.raises(UserError, match=r"no .*metrics\.csv"):
        plot_metrics(tmp_path)
    write_run(tmp_path / "empty", [])
    with pytest.raises(UserError, match="has no rows yet"):
        plot_metrics(tmp_path / "empty")
    with pytest.raises(UserError, match="no figures of train_voco"):
        plot_metrics(write_run(tmp_path / "other", [{"score": 0.5}]))


def test_main_names_the_file_and_leaves_nothing_else(tmp_path, capsys):
    run = write_run(tmp_path / "run", [FIGURES] * 2)
    before = set(run.iterdir())
    main(["--run", str(run)])
    assert capsys.readouterr().out == f"wrote {run / 'curves.png'}\n"
    assert set(run.iterdir()) - before == {run / "curves.png"}


def test_plot_metrics_keeps_the_old_picture_if_the_disk_is_full(tmp_path, monkeypatch):
    run = write_run(tmp_path, [FIGURES] * 2)
    old = plot_metrics(run).read_bytes()

    def fill(_, path, **__):
        path.write_bytes(old[:100])
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(Figure, "savefig", fill)
    with pytest.raises(OSError, match="No space"):
        plot_metrics(run)
    assert (run / "curves.png").read_bytes() == old
    assert not list(run.glob(".curves*"))
