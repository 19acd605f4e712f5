"""segment.py writes masks and tables for every series, the same in every run, and lists failures."""

import errno
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from src.data.organ_tables import ORGAN_TYPES, OrganMeasures
from src.data.png import read_png, write_png
from src.data.prepared import PreparedDataset, image_folder, mask_folder, slice_name
from src.seg.model import load_segmenter, save_segmenter
from src.seg.predict import segment_volume
from tests.helpers.doubtful_sets import mark_doubtful
from tests.helpers.folders import files_of
from tests.helpers.seg_files import (
    PIXEL_MM,
    SIZE,
    half_written,
    predict_whole,
    run_segment,
    series_ids,
    write_masked,
    write_pair,
)
from tests.helpers.seg_volumes import clean
from tests.helpers.voco_files import write_slice_table

BATCH, SLICES = 5, 12
Z_MM = -np.cumsum([0, 5, 5, 5, 2, 2, 2, 9, 9, 9, 5, 5.0])  # of the first series
TYPES = {"patient_id": str, "series_id": str}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A set, a model, and the masks of a run into the default folder; `before`: the files without these."""
    folder = tmp_path_factory.mktemp("segment")
    data, model = write_masked(folder / "set"), write_pair(folder / "run")
    dataset = PreparedDataset.open(data)
    write_slice_table(image_folder(data, *series_ids(dataset)[0]), Z_MM)
    before = files_of(data)
    assert run_segment(model, data, "--batch", BATCH, "--workers", 1).status == 0
    masks = data / "predicted_masks"
    return SimpleNamespace(data=data, model=model, dataset=dataset, before=before, masks=masks)


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the set without predicted masks, to be damaged."""
    return shutil.copytree(made.data, tmp_path / "set", ignore=shutil.ignore_patterns("predicted_masks"))


@pytest.fixture
def run(made):
    """Run segment.py on the set, the model and the batch of `made`, or on another set."""

    def run_script(*arguments, data=made.data):
        return run_segment(made.model, data, "--batch", BATCH, *arguments)

    return run_script


def read_masks(output, ids, count=SLICES):
    return np.array([read_png(output.joinpath(*ids, slice_name(index))) for index in range(count)])


def read_table(path):
    return pd.read_csv(path, dtype=TYPES)


def table_ids(path):
    return list(
        dict.fromkeys(read_table(path)[["patient_id", "series_id"]].itertuples(index=False, name=None))
    )


def test_segment_writes_masks_and_changes_nothing_else(made):
    for ids in series_ids(made.dataset):
        names = {path.name for path in made.masks.joinpath(*ids).iterdir()}
        assert names == {*map(slice_name, range(SLICES)), "organs.csv", "areas.csv"}
        assert read_masks(made.masks, ids).shape == (SLICES, SIZE, SIZE)
    after = files_of(made.data)
    assert any(name.startswith("masks/") for name in made.before)
    assert {name: after[name] for name in after if not name.startswith("predicted_masks/")} == made.before


def test_segment_cleans_the_masks_of_the_pair(made):
    pair, spec = load_segmenter(made.model / "segmenter.safetensors")
    cleaned_series = 0
    for number, ids in enumerate(series_ids(made.dataset)):
        raw = predict_whole(pair, spec, made.dataset, ids, BATCH)
        cleaned = clean(raw, voxels_ml(number))
        np.testing.assert_array_equal(read_masks(made.masks, ids), cleaned)
        cleaned_series += not np.array_equal(cleaned, raw)
    assert cleaned_series > 1


def voxels_ml(number):
    """Voxel volume per slice, which extends half-way to both neighbours."""
    z_mm = Z_MM if number == 0 else np.arange(SLICES) * -5.0
    return PIXEL_MM**2 * np.abs(np.gradient(z_mm)) / 1000


def test_segment_tables_measure_the_masks(made):
    organs, areas = read_table(made.masks / "organs.csv"), read_table(made.masks / "areas.csv")
    assert list(organs.columns) == [*TYPES, *ORGAN_TYPES]
    assert (
        table_ids(made.masks / "organs.csv")
        == table_ids(made.masks / "areas.csv")
        == series_ids(made.dataset)
    )
    for number, ids in enumerate(series_ids(made.dataset)):
        measures = OrganMeasures()
        for mask in read_masks(made.masks, ids):
            measures.add(mask)
        z_mm = Z_MM if number == 0 else np.arange(SLICES) * -5.0
        for table, expected in (
            (organs, measures.organs(PIXEL_MM, z_mm)),
            (areas, measures.areas(PIXEL_MM, z_mm)),
        ):
            rows = table[table["series_id"] == ids[1]].drop(columns=list(TYPES)).reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, expected, check_dtype=False)
    assert organs["volume_ml"].gt(0).sum() > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_segment_files_do_not_depend_on_workers(made, run, tmp_path, workers):
    assert run("--output", tmp_path / "masks", "--workers", workers).status == 0
    assert files_of(tmp_path / "masks") == files_of(made.masks)


def test_segment_does_not_repeat_finished_series(made, run, tmp_path):
    output = shutil.copytree(made.masks, tmp_path / "masks")
    missing = output.joinpath(*series_ids(made.dataset)[2])
    shutil.rmtree(missing)
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/*/*")}
    done = run("--output", output)
    assert (done.status, done.err) == (0, [])
    assert "5 series, 4 of them segmented before" in done.out[0]
    after = {path: path.stat().st_mtime_ns for path in output.glob("*/*/*")}
    assert {path: time for path, time in after.items() if path.parent != missing} == before
    assert files_of(output) == files_of(made.masks)


def test_segment_repeats_a_series_prepared_again(made, run, copy):
    output, ids = shutil.copytree(made.masks, copy / "predicted_masks"), series_ids(made.dataset)[2]
    table = image_folder(copy, *ids) / "slices.csv"
    moved = pd.read_csv(table)
    moved.assign(z_mm=moved["z_mm"] * 1.5).to_csv(table, index=False)
    done = run(data=copy)
    assert done.status == 0 and "5 series, 4 of them segmented before" in done.out[0]
    areas = read_table(output / "areas.csv")
    np.testing.assert_allclose(areas[areas["series_id"] == ids[1]]["z_mm"], moved["z_mm"] * 1.5)


def test_segment_warns_of_masks_without_a_series(made, run, copy):
    output = shutil.copytree(made.masks, copy / "predicted_masks")
    table = pd.read_csv(copy / "series.csv", dtype=TYPES)
    table.iloc[1:].to_csv(copy / "series.csv", index=False)
    done = run(data=copy)
    assert done.err == [f"warning: {output} also holds masks of 1 series that {copy} does not have"]
    assert table_ids(output / "organs.csv") == series_ids(made.dataset)[1:]


def test_segment_keeps_failures_of_series_outside_of_a_run(made, run, copy, tmp_path):
    (image_folder(copy, *series_ids(made.dataset)[1]) / slice_name(8)).unlink()
    assert run(data=copy).status == 0
    pd.DataFrame(series_ids(made.dataset)[3:4], columns=list(TYPES)).to_csv(tmp_path / "one.csv", index=False)
    assert run("--series", tmp_path / "one.csv", data=copy).status == 0
    failed = read_table(copy / "predicted_masks" / "failed.csv")
    assert failed["series_id"].tolist() == [series_ids(made.dataset)[1][1]]


def test_segment_lists_damaged_series_and_completes_them_once_repaired(made, run, copy):
    first, second = series_ids(made.dataset)[1], series_ids(made.dataset)[3]
    image = image_folder(copy, *first) / slice_name(8)
    table = image_folder(copy, *second) / "slices.csv"
    whole = {path: path.read_bytes() for path in (image, table)}
    image.write_bytes(whole[image][:-50])
    table.write_bytes(whole[table][:60])
    output = copy / "predicted_masks"
    for attempt in range(2):
        done = run("--overwrite" if attempt else "--preview", data=copy)
        assert done.status == 0
        failed = read_table(output / "failed.csv")
        assert list(failed[["patient_id", "series_id"]].itertuples(index=False, name=None)) == [first, second]
        assert f"{image} is damaged" in failed["reason"][0] and f"{table} does not fit" in failed["reason"][1]
        warnings = [line for line in done.err if line.startswith("warning: ")]
        assert "/".join(first) in warnings[0] and "/".join(second) in warnings[1] and len(warnings) == 3
        assert "2 series could not be segmented" in warnings[2]
        assert not output.joinpath(*first).exists() and not output.joinpath(*second).exists()
        assert not half_written(output)
        rest = [ids for ids in series_ids(made.dataset) if ids not in (first, second)]
        assert table_ids(output / "organs.csv") == table_ids(output / "areas.csv") == rest
    for path, data in whole.items():
        path.write_bytes(data)
    done = run(data=copy)
    assert done.status == 0 and not done.err
    assert files_of(output) == files_of(made.masks)


@pytest.mark.parametrize("problem", ["full disk", "file in the way"])
def test_segment_keeps_whole_series_if_it_cannot_write(made, run, tmp_path, monkeypatch, problem):
    output, elsewhere = tmp_path / "masks", tmp_path / "elsewhere"
    first, second = series_ids(made.dataset)[:2]
    shutil.copytree(made.masks.joinpath(*first), output.joinpath(*first))
    shutil.copy(made.masks / "segmentation.json", output)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if problem == "full disk":
        monkeypatch.setattr("src.seg.mask_writer.write_png", write_until_full)
    else:
        (output / second[0]).write_bytes(b"")
    with pytest.raises(OSError, match=r"No space left|Not a directory"):
        run("--output", output)
    assert not half_written(output) and not list(elsewhere.iterdir())
    assert [path.name for path in output.glob("*/*/")] == [first[1]]
    assert files_of(output.joinpath(*first)) == files_of(made.masks.joinpath(*first))


def write_until_full(path, mask):
    if path.name == slice_name(3):
        raise OSError(errno.ENOSPC, "No space left on device")
    write_png(path, mask)


@pytest.mark.parametrize("problem", ["missing slices", "weights that are not finite"])
def test_segment_writes_empty_tables_if_every_series_fails(made, copy, tmp_path, problem):
    model, reason = made.model, "no slice"
    if problem == "missing slices":
        for path in copy.glob("images/*/*/0003.png"):
            path.unlink()
    else:
        model, reason = tmp_path / "nan.safetensors", "not finite: try --precision fp32"
        pair, spec = load_segmenter(made.model / "segmenter.safetensors")
        pair.b.net.segmentation_head[0].weight.data.fill_(np.nan)
        save_segmenter(model, pair, spec)
    assert run_segment(model, copy).status == 0
    for name in ("organs.csv", "areas.csv"):
        table = read_table(copy / "predicted_masks" / name)
        assert table.empty and list(table) == list(read_table(made.masks / name))
    failed = read_table(copy / "predicted_masks" / "failed.csv")
    assert len(failed) == 5 and failed["reason"].str.contains(reason).all()


def test_segment_lists_a_single_slice_without_thickness(run, tmp_path):
    data = write_masked(tmp_path / "set", series=2, slices=1)
    table = pd.read_csv(data / "series.csv", dtype=TYPES)
    table.assign(spacing_z_mm=[np.nan, 5.0]).to_csv(data / "series.csv", index=False)
    assert run(data=data).status == 0
    assert read_table(data / "predicted_masks" / "failed.csv")["series_id"].tolist() == ["100"]
    assert table_ids(data / "predicted_masks" / "organs.csv") == [("11", "101")]


def test_segment_restricts_itself_to_a_table(made, run, tmp_path):
    chosen = [series_ids(made.dataset)[number] for number in (3, 1)]
    rows = [*chosen, chosen[0], ("99", "999")]
    pd.DataFrame(rows, columns=list(TYPES)).to_csv(tmp_path / "some.csv", index=False)
    output = tmp_path / "masks"
    done = run("--series", tmp_path / "some.csv", "--output", output)
    assert done.status == 0
    assert done.err == [f"warning: 1 of 3 series in {tmp_path / 'some.csv'} are not in {made.data}"]
    assert table_ids(output / "organs.csv") == table_ids(output / "areas.csv") == sorted(chosen)
    assert {path.name for path in output.glob("*/*")} == {ids[1] for ids in chosen}
    assert run("--output", output).status == 0
    assert files_of(output) == files_of(made.masks)


def test_segment_preview_draws_series_finished_before(made, run, copy):
    shutil.copytree(made.masks, copy / "predicted_masks")
    ids = series_ids(made.dataset)
    shutil.rmtree(copy.joinpath("predicted_masks", *ids[1]))
    true_mask = mask_folder(copy, *ids[2]) / slice_name(4)
    true_mask.write_bytes(b"")
    done = run("--preview", data=copy)
    assert done.status == 0
    assert done.err == [f"warning: no picture of {'/'.join(ids[2])}: {damaged(true_mask)}"]
    pictures = {path.stem: read_png(path) for path in copy.glob("predicted_masks/preview/*/*.png")}
    assert pictures.keys() == {series_id for _, series_id in ids} - {ids[2][1]}
    assert len(pictures["100"]) > len(pictures["101"]) > SIZE  # one has true masks to show
    assert (pictures["101"][..., 0] != pictures["101"][..., 2]).any()  # organs in their colours
    after = files_of(copy / "predicted_masks")
    assert {name: after[name] for name in after if not name.startswith("preview/")} == files_of(made.masks)


def damaged(path):
    return f"{path} is damaged; delete its folder and prepare the data set again"


def test_segment_segments_doubtful_series_like_others(made, copy, tmp_path):
    mark_doubtful(copy, [series_ids(made.dataset)[0][1]])
    assert run_segment(made.model, copy, "--batch", BATCH).status == 0
    masks = files_of(copy / "predicted_masks")
    assert masks == files_of(made.masks)


def test_segment_spacing_gives_the_masks_of_a_volume_in_memory(made, run, tmp_path):
    """It is part of what a folder of masks was made with."""
    output = tmp_path / "masks"
    assert run("--output", output, "--spacing-mm", 8).status == 0
    pair, spec = load_segmenter(made.model / "segmenter.safetensors")
    windows = list(made.dataset.channels(spec.windows))
    for ids in series_ids(made.dataset):
        images, z_mm = made.dataset.read_slices(*ids, range(SLICES))[..., windows], made.dataset.z_mm(*ids)
        given = {"device": torch.device("cpu"), "chunk": BATCH, "spacing_mm": 8.0}
        expected, _ = segment_volume(pair, spec, images, z_mm, PIXEL_MM, **given)
        assert (read_masks(output, ids) == expected).all()
    assert files_of(output) != files_of(made.masks)
    refused = run("--output", output)
    assert refused.status == 2 and "was made with --spacing-mm 8.0" in refused.err[0]
