"""User errors end with one line and exit status 2; any other error is a bug and keeps its traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can correct. The message is one line: what, where, what to do."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Run a script's `main` so that `UserError` prints `error: ...` on stderr and exits with status 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept", file=sys.stderr)
        raise SystemExit(130) from None
