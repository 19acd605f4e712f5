"""Which packages a bundle brings, and their wheels; some tests need a package registry (make offline)."""

import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from src.core.config import ROOT
from src.core.errors import UserError
from src.submit.options import KAGGLE_PACKAGES
from src.submit.packages import (
    NEVER_BUNDLED,
    Package,
    choose_packages,
    download_wheels,
    needed_distributions,
    read_kaggle_packages,
    read_ranges,
)
from src.submit.source import imported_names, needed_files
from tests.helpers.offline_kaggle import leave_out


@pytest.fixture(scope="module")
def ranges():
    return read_ranges(ROOT / "requirements.txt")


@pytest.fixture
def kaggle() -> dict[str, Version | None]:
    return {**read_kaggle_packages(KAGGLE_PACKAGES)}


def names(packages) -> set[str]:
    return {package.name.lower() for package in packages}


def needed(ranges, loaded=()) -> set[str]:
    imported = {name.split(".")[0] for path in needed_files() for name in imported_names(ROOT / path)}
    return needed_distributions(imported, loaded, ranges)


def test_choose_packages_bundles_what_kaggle_lacks(kaggle, ranges, capsys):
    packages = choose_packages(needed(ranges), kaggle, ranges, "3.12")
    assert {"dicomsdl", "segmentation_models_pytorch", "jsonargparse"} <= names(packages)
    on_kaggle = {"timm", "albumentations", "opencv-python-headless", "tqdm", "pyyaml", *NEVER_BUNDLED}
    assert not names(packages) & on_kaggle
    assert f"dicomsdl=={version('dicomsdl')}" in [each.pinned for each in packages]
    assert capsys.readouterr().err == ""


def test_choose_packages_brings_a_newer_timm_if_the_table_lacks_it(kaggle, ranges):
    """Older versions than that of the training build some networks otherwise, see docs/submission.md."""
    del kaggle["timm"]
    chosen = choose_packages({"timm"}, kaggle, ranges, "3.12")
    assert f"timm=={version('timm')}" in [each.pinned for each in chosen]


def test_needed_distributions_includes_plugins_but_no_parts_of_libraries(ranges):
    loaded = {"pylibjpeg", "openjpeg", "gdcm", "jpeg_ls", "charset_normalizer", "pytest"}
    found = needed(ranges, loaded) - needed(ranges)
    assert {"pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm", "pyjpegls"} <= found
    assert "charset-normalizer" not in found


def test_choose_packages_bundles_requirements_that_kaggle_lacks(kaggle, ranges):
    del kaggle["huggingface-hub"], kaggle["filelock"]
    packages = choose_packages({"segmentation-models-pytorch"}, kaggle, ranges, "3.12")
    assert {"segmentation_models_pytorch", "huggingface_hub", "filelock"} <= names(packages)
    why = {package.name: package.reason for package in packages}
    assert why["huggingface_hub"] == "for segmentation_models_pytorch"


@pytest.mark.parametrize(("known", "text"), [(Version("1.1"), "1.1"), (None, "an unknown version")])
def test_choose_packages_replaces_versions_out_of_range_but_never_torch(kaggle, ranges, capsys, known, text):
    packages = choose_packages({"tqdm", "torch"}, kaggle | {"tqdm": known, "torch": known}, ranges, "3.12")
    assert [(each.name, each.reason) for each in packages] == [("tqdm", f"for infer.py, Kaggle has {text}")]
    warning = f"Python 3.12: infer.py requires torch>=2.8, Kaggle has {text}, which is kept\n"
    assert capsys.readouterr().err == f"warning: {warning}"


def test_choose_packages_accepts_an_unknown_version_without_a_range(kaggle):
    assert choose_packages({"six"}, kaggle | {"six": None}, {"six": Requirement("six")}, "3.12") == []


def test_choose_packages_refuses_what_it_cannot_bundle(ranges):
    with pytest.raises(UserError, match=r"infer\.py needs nowhere-package, which is not installed here"):
        choose_packages({"nowhere-package"}, {}, ranges, "3.12")
    with pytest.raises(UserError, match="no torch, which is never bundled"):
        choose_packages({"torch"}, {}, ranges, "3.12")


def test_read_kaggle_packages_reads_the_output_of_pip_freeze(tmp_path):
    lines = ["# remark", "-e git+x", "Torch==2.11.0+cu128", "my.name @ file:///a/b.whl", "pydicom", ""]
    (tmp_path / "packages.txt").write_text("\n".join(lines))
    expected = {"torch": Version("2.11.0+cu128"), "my-name": None, "pydicom": None}
    assert read_kaggle_packages(tmp_path / "packages.txt") == expected


@pytest.mark.parametrize("line", ["torch>=2", "torch==two", "two words"])
def test_read_kaggle_packages_names_a_line_that_it_cannot_parse(tmp_path, line):
    (tmp_path / "packages.txt").write_text(f"numpy==2.0.2\n{line}\n")
    with pytest.raises(UserError, match="line 2: expected"):
        read_kaggle_packages(tmp_path / "packages.txt")


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> None:
    """pip can fetch a wheel."""
    folder = tmp_path_factory.mktemp("registry")
    given = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries", "0", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", *given, "--dest", str(folder), f"six=={version('six')}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        leave_out("pip reaches no registry here")


def installed(name: str) -> Package:
    return Package(name, version(name))


@pytest.mark.offline
def test_download_wheels_fetches_wheels_of_another_python(registry, tmp_path):
    download_wheels([installed("dicomsdl"), installed("jsonargparse")], "3.12", tmp_path)
    wheels = sorted(tmp_path.iterdir())
    assert [path.name.split("-")[:2] for path in wheels] == [
        ["dicomsdl", version("dicomsdl")],
        ["jsonargparse", version("jsonargparse")],
    ]
    assert "-cp312-" in wheels[0].name and wheels[0].name.endswith("x86_64.whl")
    assert wheels[1].name.endswith("-py3-none-any.whl")
    assert all(zipfile.is_zipfile(path) for path in wheels)


@pytest.mark.offline
def test_download_wheels_names_a_wheel_that_does_not_exist(registry, tmp_path):
    with pytest.raises(UserError, match=r"found for dicomsdl==0\.0\.99 .*leave 3\.12 out"):
        download_wheels([Package("dicomsdl", "0.0.99")], "3.12", tmp_path)


def test_download_wheels_without_a_registry_ends_in_one_line(no_registry, tmp_path):
    with pytest.raises(UserError, match=r"wheels for Python 3\.12: .*is there a network") as caught:
        download_wheels([installed("six")], "3.12", tmp_path)
    assert "\n" not in str(caught.value)
    download_wheels([], "3.12", tmp_path)  # nothing to fetch
    assert not list(tmp_path.iterdir())
