"""submit.py: its commands, its help, and what it refuses before it does anything."""

import ast
import re

import pytest

import submit
from src.core.config import ROOT
from src.core.errors import UserError


def test_main_help_lists_every_command(capsys):
    for asked in ([], ["--help"]):
        submit.main(asked)
        shown = capsys.readouterr().out
        for name, (_, _, what) in submit.COMMANDS.items():
            assert f"python submit.py {name} --" in shown and f"{name:8}{what}" in shown


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("upload", r"unknown command upload: submit.py takes bundle, kernel, push, submit \(and --help\)"),
        ("bundle --output x", "option --models is required"),
        ("push --bundle b", "option --kernel is required"),
        ("push --bundle nowhere --kernel k", "nowhere is not a bundle"),
        ("push --bundle b --kernel k --poll-seconds 0", "--poll-seconds must be above 0, got 0"),
        ("submit --version 1 --message m", "give either --kernel FOLDER or --id USER/KERNEL"),
        ("submit --version 1 --message m --id a/kernel --kernel k", "give either"),
        ("submit --version 0 --message m --id a/kernel", "--version must be at least 1, got 0"),
        ("submit --version 1 --message m --kernel nowhere", "nowhere holds no notebook"),
    ],
)
def test_main_refuses_a_mistake_in_one_line(given, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=part) as caught:
        submit.main(given.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["push --bundle b --kernel k", "submit --version 1 --id a/kernel"])
@pytest.mark.parametrize("message", [" ", "two\nlines"])
def test_main_takes_one_line_as_message(command, message):
    with pytest.raises(UserError, match="--message takes one line of text"):
        submit.main([*command.split(), "--message", message])


def test_submit_neither_imports_kaggle_nor_reads_credentials():
    """Importing the package logs in; credentials are left to the program."""
    for path in [ROOT / "submit.py", *sorted((ROOT / "src" / "submit").glob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"kaggle", "kagglesdk"}
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in {"kaggle", "kagglesdk", "kagglehub"}
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"getenv", "expanduser", "home"}, path
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"KAGGLE_(USERNAME|KEY|API_TOKEN)|kaggle\.json", node.value), path
