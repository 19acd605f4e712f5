"""The bundle: what lies in it, what does not, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from kaggle_files import DATASET, write_network, write_run, write_second_run, write_segmenter

import infer
import submit
from src.cls.run_folder import find_folds
from src.cls.second_model import find_first_level
from src.core.config import ROOT
from src.core.errors import UserError
from src.score.postprocess import PostProcessing, write_post
from src.submit.bundle import read_bundle
from src.submit.models import run_files, warn_of_unfinished
from src.submit.packages import Package
from src.submit.wheels import download_wheels


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """A table that says that Kaggle has all that is installed here: no wheels are then needed."""
    path = tmp_path_factory.mktemp("image") / "image.txt"
    lines = {f"{each.metadata['Name']}=={each.version}\n" for each in distributions()}
    path.write_text("".join(sorted(lines)))
    return path


def arguments(image: Path, output: Path, *models: Path, **changes: object) -> list[str]:
    given = {"output": output, "id": DATASET, "title": "A trauma bundle", "image": image} | changes
    rest = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["bundle", "--models", *map(str, models), *rest]


@pytest.fixture(scope="module")
def made(image, tmp_path_factory) -> Path:
    """A bundle of two runs, one of the second level, with all that can be given."""
    folder = tmp_path_factory.mktemp("made")
    models = write_run(folder / "plain run"), write_second_run(folder / "second")
    write_post(PostProcessing.identity(2), folder / "fitted.json", ["a", "b"])
    segmenter = write_segmenter(folder / "seg")
    more = {"post": folder / "fitted.json", "segmenter": segmenter}
    submit.main(arguments(image, folder / "bundle", *models, **more))
    return folder / "bundle"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_bundle_holds_what_infer_py_reads_and_no_checkpoint(made):
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


def test_the_runs_of_the_bundle_are_those_given_in_their_order(made):
    models = [made / name for name in read_bundle(made).models]
    for copy, run in zip(models, (made.parent / "plain run", made.parent / "second"), strict=True):
        assert run_files(copy) == run_files(run)
        assert all((copy / path).read_bytes() == (run / path).read_bytes() for path in run_files(run))
    assert [len(networks) for networks in find_folds(models[0])] == [1, 1]
    assert [path.parent.name for path in find_first_level(models[1] / "fold0")] == ["0", "1"]


def test_the_checksums_are_right_for_sha256sum_and_cover_every_file_that_is_uploaded(made):
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=made, check=True)
    listed = {line.split("  ", 1)[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    # the kaggle program reads the metadata and does not upload them
    assert listed == files_of(made) - {"SHA256SUMS", "dataset-metadata.json"}


def test_the_metadata_are_those_that_kaggle_asks_for(made):
    metadata = json.loads((made / "dataset-metadata.json").read_text())
    assert metadata == {"title": "A trauma bundle", "id": DATASET, "licenses": [{"name": "other"}]}


def test_the_bundle_tells_which_options_its_infer_py_has(made):
    fields = {f"--{name.replace('_', '-')}" for name in infer.InferOptions.__dataclass_fields__}
    assert set(read_bundle(made).infer_options) - {"--check"} == fields | {"--help", "--config"}


def test_no_wheel_is_bundled_for_what_kaggle_has(made):
    assert read_bundle(made).wheels == {"3.11": [], "3.12": []}
    assert not (made / "wheels").exists()


def test_sizes_are_shown_and_an_older_bundle_is_replaced(image, tmp_path, capsys):
    run = write_run(tmp_path / "run", folds=1)
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "bundle.json").write_text("{}")
    (output / "old.txt").write_text("old")
    submit.main(arguments(image, output, run, python="3.12"))
    assert not (output / "old.txt").exists() and read_bundle(output).dataset == DATASET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "run"]
    shown = capsys.readouterr().out
    size = sum((output / name).stat().st_size for name in files_of(output) if name.startswith("models/"))
    assert re.search(rf"models/0_run +1 +{size / 1e6:.2f}\n", shown), shown
    assert re.search(r"\n *all +\d+ +\d+\.\d\d\n", shown), shown


def test_unfinished_folds_are_left_out_with_a_warning(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    (run / "fold2").mkdir()
    (run / "fold2" / "last.pt").write_bytes(b"half")
    write_network(run / "fold3" / "bowel" / "model.safetensors", networks=["bowel", "liver"])
    assert [path.parts[0] for path in run_files(run)] == ["fold0", "fold1"]
    warn_of_unfinished(run)
    assert "fold2, fold3 not finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"models": "nowhere"}, "no run folder nowhere"),
        ({"models": "empty"}, "no finished fold"),
        ({"models": "broken"}, "cannot be read as a fold model"),
        ({"models": "organs"}, "organs looks at organs, .*: give --segmenter"),
        ({"models": "organs", "segmenter": "nowhere"}, "--segmenter takes"),
        ({"segmenter": "nowhere"}, "none of these models looks at organs"),
        ({"post": "post.json"}, "fitted on 2 tables or runs, there are 1"),
        ({"image": "nothing.txt"}, "nothing.txt cannot be read"),
        ({"title": "short"}, "--title takes 6 to 50 characters, got 5"),
        ({"id": "someone/tiny"}, "--id takes USER/SLUG, the slug 6 to 50"),
        ({"id": "just-a-slug"}, "--id takes USER/SLUG"),
        ({"python": "3"}, "--python takes versions such as 3.12"),
        ({"output": "thesis"}, "holds something else than a bundle"),
        ({"output": "a_file"}, "a_file is not a folder"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(image, tmp_path, monkeypatch, changes, part):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", folds=1)
    (tmp_path / "empty").mkdir()
    write_network(tmp_path / "organs" / "fold0" / "model.safetensors", in_plane="liver")
    shutil.copytree(tmp_path / "run", tmp_path / "broken")
    (tmp_path / "broken" / "fold0" / "model.safetensors").write_bytes(b"half")
    write_post(PostProcessing.identity(2), tmp_path / "post.json", ["a", "b"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    (tmp_path / "a_file").write_text("")
    before = files_of(tmp_path)
    changes = dict(changes)
    models = [Path(changes.pop("models", "run"))]
    given = {"image": image, "output": "bundle"} | changes
    with pytest.raises(UserError, match=part) as caught:
        submit.main(arguments(given.pop("image"), given.pop("output"), *models, **given))
    assert "\n" not in str(caught.value)
    assert files_of(tmp_path) == before


@pytest.fixture(scope="session")
def registry(tmp_path_factory) -> None:
    """Skips a test where pip cannot fetch a wheel."""
    folder = tmp_path_factory.mktemp("registry")
    asked = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries", "0", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", *asked, "--dest", str(folder), f"six=={version('six')}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("pip reaches no registry here")


def test_wheels_of_packages_that_kaggle_lacks_are_for_its_python_and_no_other(registry, image, tmp_path):
    lacking = {"dicomsdl", "jsonargparse"}
    lines = [line for line in image.read_text().splitlines() if line.split("==")[0] not in lacking]
    (tmp_path / "image.txt").write_text("\n".join(lines))
    run = write_run(tmp_path / "run", folds=1)
    submit.main(arguments(tmp_path / "image.txt", tmp_path / "bundle", run, python="3.12"))
    wanted = [f"{name}=={version(name)}" for name in sorted(lacking)]
    assert read_bundle(tmp_path / "bundle").wheels == {"3.12": wanted}
    wheels = sorted((tmp_path / "bundle" / "wheels").iterdir())
    assert [path.name.split("-")[0] for path in wheels] == sorted(lacking)
    assert "-cp312-" in wheels[0].name and wheels[0].name.endswith("x86_64.whl")
    assert wheels[1].name.endswith("-py3-none-any.whl")
    assert all(zipfile.is_zipfile(path) for path in wheels)


def test_a_wheel_that_does_not_exist_is_named(registry, tmp_path):
    with pytest.raises(UserError, match=r"no wheel of dicomsdl==0\.0\.99 for Python 3\.12"):
        download_wheels([Package("dicomsdl", "0.0.99", "")], "3.12", tmp_path)


@pytest.mark.parametrize("retries", ["0", "1"])
def test_a_registry_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch, retries):
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)
    with pytest.raises(UserError, match="is there a network") as caught:
        download_wheels([Package("six", version("six"), "")], "3.12", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_licence_and_the_requirements_are_the_kits(made):
    for name in ("LICENSE", "requirements.txt", "infer.py"):
        assert (made / name).read_bytes() == (ROOT / name).read_bytes()
