"""Every command that the README and the Makefile show exists, with the options they show."""

import re
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from runpy import run_path

import pytest
import torch

from src.nn.encoder import EncoderFile, create_encoder, save_encoder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
]
FILES = (*PAGES, "folds/README.md", "Makefile")


def commands() -> list[str]:
    """Lines that start with `python` or `make`, without trailing remarks, each once."""
    found = {}
    for name in FILES:
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            line = line.strip().split("  #")[0]
            if re.match(r"(python (-m )?[\w./]+|make \w+)(\s|$)", line) and "-m pip" not in line:
                found[line.strip()] = None
    return list(found)


@cache
def help_text(program: tuple[str, ...]) -> str:
    """The --help of a script, which must end with status 0; in this process, which has imported torch."""
    told, before, path = StringIO(), sys.argv, list(sys.path)
    sys.argv = [*program, "--help"]
    try:
        with redirect_stdout(told), pytest.raises(SystemExit) as ended:
            if program[0] == "-m":
                import_main(program[1])()
            else:
                sys.path.insert(0, str((ROOT / program[0]).parent))
                run_path(str(ROOT / program[0]), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before, path
    assert not ended.value.code, told.getvalue()
    return told.getvalue()


def import_main(name: str) -> Callable[[], None]:
    """`main` of a module or of a package that is run with -m."""
    module = import_module(name)
    return (import_module(f"{name}.__main__") if hasattr(module, "__path__") else module).main


def test_there_are_commands_to_check():
    assert len(commands()) >= 12


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_exists_with_its_options(command):
    words = shlex.split(command.rstrip("\\"))
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"no target {words[1]}"
        return
    program = tuple(words[1:3] if words[1] == "-m" else words[1:2])
    if program[-1] == "pytest":
        return
    if program == ("submit.py",) and not words[2].startswith("-"):
        program = (*program, words[2])  # each of its commands has options of its own
    shown = set(re.findall(r"(?<!\S)--[\w-]+", help_text(program)))
    for option in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert option in shown, f"{program} has no option {option}"
    for word in words:
        if word.startswith(("configs/", "folds/")) and "--output " + word not in command:
            assert (ROOT / word).exists(), word


LINKS = [
    (page, link)
    for page in (*PAGES, "folds/README.md")
    for link in re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_linked_file_and_its_heading_exist(page, link):
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_the_example_of_plain_timm_runs_as_it_is_shown(tmp_path, monkeypatch):
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    path = re.search(r'path = "(.*)"', example)[1]
    saved = create_encoder("test_resnet", 2)
    about = EncoderFile("test_resnet", 2, (0.5,) * 2, (0.25,) * 2, ("soft", "wide"), {}, ("1",))
    save_encoder(tmp_path / path, saved, about)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert names["about"]["windows"] == ["soft", "wide"]
    weights = names["encoder"].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in saved.state_dict().items())
