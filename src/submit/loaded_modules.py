"""Start `infer.py` where it will lie, and see what it loads."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from src.core.errors import UserError

# Help is asked for as a user would, since parsing options imports more than importing the script does.
_PROGRAM = """
import contextlib, importlib, io, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    importlib.import_module("infer").main(["--help"])
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def find_loaded(folder: Path, modules: Sequence[str]) -> set[str]:
    """Import the modules in a process of its own, in `folder`, and ask `infer.py` for its help.

    Returns:
        Top-level names of every module in memory then, plugins that a library looks for included.

    Raises:
        UserError: it does not start there.
    """
    finished = subprocess.run(
        [sys.executable, "-B", "-c", _PROGRAM, *modules],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"infer.py does not start in the bundle: {reason}")
    return set(json.loads(finished.stdout.strip().splitlines()[-1]))
