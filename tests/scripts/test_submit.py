"""submit.py itself: its commands, its help, and what it refuses before it does anything."""

import ast
import subprocess
import sys

import pytest

import submit
from src.core.config import ROOT
from src.core.errors import UserError


def test_the_help_lists_every_command_with_what_it_is_for(capsys):
    for asked in ([], ["--help"]):
        submit.main(asked)
        shown = capsys.readouterr().out
        for name, (_, _, what) in submit.COMMANDS.items():
            assert f"python submit.py {name} --" in shown and f"{name:8}{what}" in shown


@pytest.mark.parametrize("command", submit.COMMANDS)
def test_a_command_explains_every_option_without_loading_torch(command):
    code = (
        "import sys, submit\n"
        f"try: submit.main(['{command}', '--help'])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "sys.exit('torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for field in submit.COMMANDS[command][1].__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in finished.stdout


def test_an_unknown_command_is_one_line_and_status_2():
    finished = subprocess.run(
        [sys.executable, str(ROOT / "submit.py"), "upload"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr == (
        "error: unknown command upload: submit.py takes bundle, kernel, push, submit (and --help)\n"
    )


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("bundle --output x", "option --models is required"),
        ("bundle --learn 3", "unknown option --learn"),
        ("push --bundle b", "option --kernel is required"),
        ("push --bundle nowhere --kernel k", "nowhere is not a bundle"),
        ("push --bundle b --kernel k --poll-seconds 0", "times to wait must be above 0"),
        ("submit --version 1 --message m", "give either --kernel FOLDER or --id USER/KERNEL"),
        ("submit --version 1 --message m --id a/kernel --kernel k", "give either"),
        ("submit --version 0 --message m --id a/kernel", "--version counts from 1"),
        ("submit --version one --message m --id a/kernel", "option --version: expected int"),
        ("submit --version 1 --message m --kernel nowhere", "nowhere holds no notebook"),
    ],
)
def test_a_mistake_is_one_line(given, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=part) as caught:
        submit.main(given.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["push --bundle b --kernel k", "submit --version 1 --id a/kernel"])
@pytest.mark.parametrize(("message", "part"), [(" ", "is empty"), ("two\nlines", "takes one line")])
def test_a_message_is_one_line(command, message, part):
    with pytest.raises(UserError, match=f"--message {part}"):
        submit.main([*command.split(), "--message", message])


def test_no_part_imports_kaggle_or_reads_its_credentials():
    """Importing the package logs in; credentials are the program's own matter."""
    for path in [ROOT / "submit.py", *sorted((ROOT / "src" / "submit").glob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"kaggle", "kagglesdk"}
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] not in {"kaggle", "kagglesdk", "kagglehub"}
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"environ", "getenv", "expanduser", "home"}, path
