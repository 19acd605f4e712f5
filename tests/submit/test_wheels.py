"""Wheels are fetched for Kaggle's Python; what hinders it is told in one line."""

import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version

import pytest

from src.core.errors import UserError
from src.submit.packages import Package
from src.submit.wheels import download_wheels
from tests.helpers.offline_kaggle import leave_out


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> None:
    """pip can fetch a wheel."""
    folder = tmp_path_factory.mktemp("registry")
    asked = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--retries", "0", "--timeout", "20"]
    command = [sys.executable, "-m", "pip", *asked, "--dest", str(folder), f"six=={version('six')}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        leave_out("pip reaches no registry here")


def installed(name: str) -> Package:
    return Package(name, version(name), "for infer.py")


@pytest.mark.offline
def test_wheels_are_for_the_python_that_is_named_and_no_requirement_comes_along(registry, tmp_path):
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
def test_a_wheel_that_does_not_exist_is_named(registry, tmp_path):
    with pytest.raises(UserError, match=r"no wheel of dicomsdl==0\.0\.99 for Python 3\.12"):
        download_wheels([Package("dicomsdl", "0.0.99", "")], "3.12", tmp_path)


def unreachable(monkeypatch, retries: str) -> None:
    """Set pip to a registry that nobody serves."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", retries)


@pytest.mark.parametrize("retries", ["0", "1"])
def test_a_registry_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch, retries):
    unreachable(monkeypatch, retries)
    with pytest.raises(UserError, match="is there a network") as caught:
        download_wheels([installed("six")], "3.12", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_environment_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(UserError, match="no pip to fetch wheels with: python -m ensurepip") as caught:
        download_wheels([installed("six")], "3.12", tmp_path / "wheels")
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_where_nothing_is_lacking(tmp_path, monkeypatch):
    unreachable(monkeypatch, "0")
    download_wheels([], "3.12", tmp_path / "wheels")
    assert not (tmp_path / "wheels").exists()
