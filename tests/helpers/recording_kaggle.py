"""A kaggle program that records how it is called and gives the answers that a test sets."""

import json
import os
import sys
from pathlib import Path

_PROGRAM = """#!{python} -SE
import json, sys, time
from pathlib import Path
folder = Path({folder!r})
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for command, texts in answers.items():
    if sys.argv[1 : 1 + len(command.split())] == command.split():
        text, status, seconds = texts[0] if len(texts) == 1 else texts.pop(0)
        (folder / "answers.json").write_text(json.dumps(answers))
        time.sleep(seconds)
        stream = sys.stdout if status == 0 else sys.stderr
        stream.write(text)
        sys.exit(status)
sys.exit("no answer to " + " ".join(sys.argv[1:]))
"""


def forget_kaggle(monkeypatch) -> None:
    """Without the settings of who runs the tests, credentials and Kaggle's own machines among them."""
    for name in list(os.environ):
        if name == "XDG_CONFIG_HOME" or name.startswith("KAGGLE_"):
            monkeypatch.delenv(name)


class RecordingKaggle:
    """A program named kaggle, beside what passes for the Python that runs, that writes down its arguments.

    `answers`: words that a call begins with -> what it prints, one after the other, the last for ever; text,
    or text and exit status, or text, exit status and seconds that it takes. The first words that fit count.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        folder.mkdir()
        write_program(folder, _PROGRAM.format(python=sys.executable, folder=str(folder)))
        forget_kaggle(monkeypatch)
        monkeypatch.setattr("sys.executable", str(folder / "python"))

    def answer(self, answers: dict[str, list]) -> None:
        whole = {command: [_as_triple(each) for each in texts] for command, texts in answers.items()}
        (self.folder / "answers.json").write_text(json.dumps(whole))

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_program(folder: Path, text: str) -> Path:
    """A program named kaggle."""
    path = folder / "kaggle"
    path.write_text(text)
    path.chmod(0o755)
    return path


def _as_triple(answer: str | tuple) -> list:
    return [answer, 0, 0] if isinstance(answer, str) else [*answer, 0][:3]
