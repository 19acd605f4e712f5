"""Start `infer.py` where it will lie, and see what it loads and which options it has."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.core.errors import UserError

# Help is asked for as a user would, since parsing options imports more than importing the script does.
_PROBE = """
import contextlib, importlib, io, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
text = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
    importlib.import_module("infer").main(["--help"])
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"loaded": loaded, "help": text.getvalue()}))
"""


@dataclass(frozen=True)
class Started:
    """What a start of `infer.py` showed."""

    loaded: frozenset[str]
    """top-level names of every module in memory, plugins that a library looks for included"""
    options: tuple[str, ...]
    """of the command line, with their hyphens, sorted"""


def start_infer(folder: Path, modules: Sequence[str]) -> Started:
    """Import the modules in a process of its own, in `folder`, and ask `infer.py` for its help.

    Raises:
        UserError: it does not start there.
    """
    finished = subprocess.run(
        [sys.executable, "-B", "-c", _PROBE, *modules],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"infer.py does not start in the bundle: {reason}")
    told = json.loads(finished.stdout.strip().splitlines()[-1])
    # Each begins a line; what does not predict (--check) is shown as a command in the description.
    options = set(re.findall(r"(?:^ +(?:-\w, )?|infer\.py )(--[a-z][\w-]*)", told["help"], re.MULTILINE))
    return Started(frozenset(told["loaded"]), tuple(sorted(options)))
