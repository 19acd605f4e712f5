"""bundle: what it contains, what it does not, and what is refused."""

import json
import re
import shutil
import subprocess
from contextlib import redirect_stdout
from importlib.metadata import distributions
from io import StringIO
from pathlib import Path

import pytest

import submit
from src.cls.fold_models import find_first_level, find_folds
from src.core.errors import UserError
from src.score.postprocess import PostProcessing, write_post
from src.submit.bundle import check_models, copy_run, run_files
from src.submit.folders import read_bundle
from tests.helpers.cls_runs import write_network, write_run, write_second_run
from tests.helpers.folders import files_of, write_files
from tests.helpers.kaggle_folders import DATASET
from tests.helpers.seg_files import write_pair

HALF = "fold1/model.safetensors"


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A table with all that is installed here, so that no wheels are needed."""
    path = tmp_path_factory.mktemp("packages") / "packages.txt"
    lines = {f"{each.metadata['Name']}=={each.version}\n" for each in distributions()}
    path.write_text("".join(sorted(lines)))
    return path


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """Runs to take from, good and bad ones. Tests only read them."""
    folder = tmp_path_factory.mktemp("stock")
    run = write_run(folder / "plain run")
    write_second_run(folder / "second")
    write_network(folder / "organs" / "fold0" / "model.safetensors", in_plane="liver")
    write_pair(folder / "seg", size=48)
    (folder / "seg" / "last.pt").write_bytes(b"checkpoint")
    write_pair(folder / "seg of 64", size=64)
    write_post(PostProcessing.identity(2), folder / "two.json", ["a", "b"])
    (folder / "empty").mkdir()
    shutil.copytree(run, folder / "broken")
    (folder / "broken" / HALF).write_bytes(b"half")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "text").write_text("years of work")
    (folder / "a_file").write_text("")
    return folder


def arguments(packages: Path, output: Path, *models: Path, **changes: object) -> list[str]:
    given = {
        "output": output,
        "id": DATASET,
        "title": "A trauma bundle",
        "kaggle-packages": packages,
    } | changes
    rest = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["bundle", "--models", *map(str, models), *rest]


@pytest.fixture(scope="module")
def made(packages, stock, tmp_path_factory) -> Path:
    """A bundle of two runs, one of the second level, with all that can be given, in place of an older one.

    What was printed is in printed.txt beside it.
    """
    output = tmp_path_factory.mktemp("made") / "bundle"
    write_files(output, {"bundle.json": b"{}", "old.txt": b"old"})
    more = {"post": stock / "two.json", "segmenter": stock / "seg"}
    with redirect_stdout(StringIO()) as printed:
        submit.main(arguments(packages, output, stock / "plain run", stock / "second", **more))
    (output.parent / "printed.txt").write_text(printed.getvalue())
    return output


def test_bundle_contains_what_infer_py_reads_and_no_checkpoint(made):
    files = files_of(made)
    assert {name for name in files if not name.startswith("src/")} == {
        *("infer.py", "requirements.txt", "LICENSE"),
        *("bundle.json", "SHA256SUMS", "dataset-metadata.json"),
        *("segmenter/segmenter.safetensors", "post.json"),
        *(f"models/0_plain_run/fold{fold}/model.safetensors" for fold in range(2)),
        "models/1_second/fold0/second.safetensors",
        *(f"models/1_second/fold0/first/{number}/model.safetensors" for number in range(2)),
    }
    assert not [name for name in files if name.endswith((".pt", ".pyc", ".csv", ".yaml"))]


def test_bundle_contains_the_runs_in_their_order(made, stock):
    models = [made / name for name in read_bundle(made).models]
    for copy, run in zip(models, (stock / "plain run", stock / "second"), strict=True):
        assert run_files(copy) == run_files(run)
        assert all((copy / path).read_bytes() == (run / path).read_bytes() for path in run_files(run))
    assert [len(networks) for networks in find_folds(models[0])] == [1, 1]
    assert [path.parent.name for path in find_first_level(models[1] / "fold0")] == ["0", "1"]
    check_models(models, None, made / read_bundle(made).segmenter)  # nothing is missing in the copies


def test_bundle_checksums_cover_every_uploaded_file(made):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=made, check=True)
    listed = {line.split("  ", 1)[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    # the kaggle program reads the metadata and does not upload them
    assert listed == set(files_of(made)) - {"SHA256SUMS", "dataset-metadata.json"}


def test_bundle_metadata_are_those_of_a_kaggle_dataset(made):
    metadata = json.loads((made / "dataset-metadata.json").read_text())
    assert metadata == {"title": "A trauma bundle", "id": DATASET, "licenses": [{"name": "other"}]}


def test_bundle_records_needed_packages_with_their_ranges(made):
    needed = read_bundle(made).needed
    assert needed["torch"] == ">=2.8" and needed["albumentations"] == "==2.0.8"
    assert {"dicomsdl", "segmentation-models-pytorch", "pylibjpeg-openjpeg", "pyyaml"} <= set(needed)
    assert not {"kaggle", "pytest", "nbformat"} & set(needed)


def test_bundle_has_no_wheel_for_what_kaggle_has(made):
    assert read_bundle(made).wheels == {"3.11": [], "3.12": []}
    assert not (made / "wheels").exists()


def test_bundle_prints_sizes_and_replaces_an_older_bundle(made):
    assert sorted(path.name for path in made.parent.iterdir()) == ["bundle", "printed.txt"]
    assert not (made / "old.txt").exists() and read_bundle(made).dataset == DATASET
    shown = (made.parent / "printed.txt").read_text()
    size = sum(len(data) for name, data in files_of(made).items() if name.startswith("models/0"))
    assert re.search(rf"models/0_plain_run +2 +{size / 1e6:.2f}\n", shown), shown
    assert re.search(r"\n *all +\d+ +\d+\.\d\d\n", shown), shown


def test_copy_run_leaves_unfinished_folds_out_with_a_warning(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "fold2").mkdir()
    (run / "fold2" / "last.pt").write_bytes(b"half")
    write_network(run / "fold3" / "bowel" / "model.safetensors", networks=["bowel", "liver"])
    assert [path.parts[0] for path in run_files(run)] == ["fold0", "fold1"]
    copy_run(run, tmp_path / "models", 0)
    assert "fold2, fold3 not finished" in capsys.readouterr().err


def test_copy_run_names_folders_in_plain_letters(stock, tmp_path):
    shutil.copytree(stock / "organs", tmp_path / "größe µ (1)")
    folder = copy_run(tmp_path / "größe µ (1)", tmp_path / "models", 0)
    assert folder.name == "0_gr_e_1_"


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"models": "nowhere"}, "no run folder nowhere"),
        ({"models": "empty"}, "no finished fold"),
        ({"models": "broken"}, "cannot be read as a fold model"),
        ({"models": "organs"}, "these models use organ masks, .*: give --segmenter"),
        ({"models": "second"}, "these models use organ masks, .*: give --segmenter"),
        ({"models": "organs", "segmenter": "nowhere"}, "there is no file nowhere"),
        ({"models": "organs", "segmenter": f"broken/{HALF}"}, "cannot be read as a segmentation"),
        ({"models": "organs", "segmenter": f"plain run/{HALF}"}, "is not a segmentation model"),
        ({"models": "organs", "segmenter": "seg of 64"}, "slices of 64 px, the models on 48 px"),
        ({"segmenter": "seg"}, "none of these models uses organ masks: leave --segmenter seg out"),
        ({"post": "two.json"}, "fitted on 2 tables or runs, there are 1"),
        ({"kaggle-packages": "nothing.txt"}, "nothing.txt cannot be read"),
        ({"title": "short"}, "--title takes 6 to 50 characters, got 5"),
        ({"id": "someone/tiny"}, "--id takes USER/SLUG, the slug 6 to 50"),
        ({"python": "3"}, "--python takes versions such as 3.12"),
        ({"output": "thesis"}, "contains something other than a bundle"),
        ({"output": "a_file"}, "a_file is not a folder"),
    ],
)
def test_bundle_refuses_in_one_line_and_leaves_nothing(packages, stock, tmp_path, monkeypatch, changes, part):
    monkeypatch.chdir(stock)
    before = files_of(stock)
    given = {"models": "plain run", "output": tmp_path / "bundle"} | changes
    model, output = Path(given.pop("models")), Path(given.pop("output"))
    with pytest.raises(UserError, match=part) as caught:
        submit.main(arguments(packages, output, model, **given))
    assert "\n" not in str(caught.value)
    assert files_of(stock) == before and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bundle_without_its_wheels_leaves_the_older_bundle(packages, stock, tmp_path, no_registry):
    output, table = tmp_path / "bundle", tmp_path / "packages.txt"
    write_files(output, {"bundle.json": b"the older one"})
    table.write_text("".join(line for line in packages.open() if not line.startswith("dicomsdl==")))
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="is there a network"):
        submit.main(arguments(table, output, stock / "plain run", python="3.12"))
    assert files_of(tmp_path) == before
