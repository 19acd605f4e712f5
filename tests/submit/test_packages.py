"""Which packages a bundle brings is computed from what is installed, what is imported, and Kaggle's table."""

from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from src.core.config import ROOT
from src.core.errors import UserError
from src.submit.options import KAGGLE_PACKAGES
from src.submit.packages import (
    NEVER_BUNDLED,
    choose_packages,
    needed_distributions,
    read_kaggle_packages,
    read_ranges,
)
from src.submit.source import imported_names, needed_files


@pytest.fixture(scope="module")
def ranges():
    return read_ranges(ROOT / "requirements.txt")


def names(packages) -> set[str]:
    return {package.name.lower() for package in packages}


def needed(ranges, loaded=()) -> set[str]:
    imported = {name.split(".")[0] for path in needed_files() for name in imported_names(ROOT / path)}
    return needed_distributions(imported, loaded, ranges)


def test_what_kaggle_lacks_is_bundled_and_what_it_has_is_not(ranges):
    packages, remarks = choose_packages(needed(ranges), read_kaggle_packages(KAGGLE_PACKAGES), ranges, "3.12")
    assert {"dicomsdl", "segmentation_models_pytorch", "jsonargparse"} <= names(packages)
    assert not names(packages) & {
        "timm",
        "albumentations",
        "opencv-python-headless",
        "tqdm",
        "pyyaml",
        *NEVER_BUNDLED,
    }
    assert remarks == []
    assert f"dicomsdl=={version('dicomsdl')}" in [each.pinned for each in packages]


def test_plugins_that_a_library_loads_are_needed_and_its_own_parts_are_not(ranges):
    loaded = {"pylibjpeg", "openjpeg", "gdcm", "jpeg_ls", "charset_normalizer", "pytest"}
    found = needed(ranges, loaded) - needed(ranges)
    assert {"pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm", "pyjpegls"} <= found
    assert "charset-normalizer" not in found


def test_requirements_come_along_unless_kaggle_has_them(ranges):
    kaggle = {**read_kaggle_packages(KAGGLE_PACKAGES)}
    del kaggle["huggingface-hub"], kaggle["filelock"]
    packages, _ = choose_packages({"segmentation-models-pytorch"}, kaggle, ranges, "3.12")
    assert {"segmentation_models_pytorch", "huggingface_hub", "filelock"} <= names(packages)
    why = {package.name: package.reason for package in packages}
    assert why["huggingface_hub"] == "for segmentation_models_pytorch"


def test_a_version_out_of_range_is_replaced_except_torch_and_its_kin(ranges):
    kaggle = {**read_kaggle_packages(KAGGLE_PACKAGES), "tqdm": Version("4.1"), "torch": Version("2.1")}
    packages, remarks = choose_packages({"tqdm", "torch"}, kaggle, ranges, "3.12")
    assert [package.name for package in packages] == ["tqdm"]
    assert "has 4.1" in packages[0].reason
    assert remarks == ["infer.py asks for torch>=2.8, Kaggle has 2.1, which stays"]


def test_a_version_that_is_not_known_is_told_so(ranges):
    kaggle = {**read_kaggle_packages(KAGGLE_PACKAGES), "tqdm": None, "torch": None}
    packages, remarks = choose_packages({"tqdm", "torch"}, kaggle, ranges, "3.12")
    assert packages[0].reason == "for infer.py, Kaggle has an unknown version"
    assert remarks == ["infer.py asks for torch>=2.8, Kaggle has an unknown version, which stays"]


def test_a_package_that_is_not_installed_here_is_named_with_who_asks_for_it(ranges):
    with pytest.raises(UserError, match=r"infer\.py needs nowhere-package, which is not installed here"):
        choose_packages({"nowhere-package"}, {}, ranges, "3.12")


def test_a_package_of_unknown_version_is_bundled_where_a_version_matters(ranges):
    kaggle = {**read_kaggle_packages(KAGGLE_PACKAGES), "pydicom": None, "six": None}
    packages, _ = choose_packages({"pydicom"}, kaggle, ranges, "3.12")
    assert names(packages) == {"pydicom"}
    assert choose_packages({"six"}, kaggle, {"six": Requirement("six")}, "3.12") == ([], [])


def test_a_package_that_nobody_knows_is_bundled(ranges):
    kaggle = {name: known for name, known in read_kaggle_packages(KAGGLE_PACKAGES).items() if name != "tqdm"}
    assert names(choose_packages({"tqdm"}, kaggle, ranges, "3.12")[0]) == {"tqdm"}


def test_a_table_without_torch_is_refused(ranges):
    with pytest.raises(UserError, match="no torch, which is never bundled"):
        choose_packages({"torch"}, {}, ranges, "3.12")


def test_the_output_of_pip_freeze_is_understood(tmp_path):
    lines = [
        "# remark",
        "-e git+somewhere",
        "Torch==2.11.0+cu128",
        "my.name @ file:///a/b.whl",
        "pydicom",
        "",
    ]
    (tmp_path / "packages.txt").write_text("\n".join(lines))
    expected = {"torch": Version("2.11.0+cu128"), "my-name": None, "pydicom": None}
    assert read_kaggle_packages(tmp_path / "packages.txt") == expected


@pytest.mark.parametrize("line", ["torch>=2", "torch==two", "two words"])
def test_a_line_that_is_not_understood_is_named(tmp_path, line):
    (tmp_path / "packages.txt").write_text(f"numpy==2.0.2\n{line}\n")
    with pytest.raises(UserError, match="line 2: expected"):
        read_kaggle_packages(tmp_path / "packages.txt")
