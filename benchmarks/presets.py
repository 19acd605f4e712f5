"""The presets of configs/, for benchmarks that measure what users run."""

from typing import Any, TypeVar

from src.core.config import ROOT, parse_options

Options = TypeVar("Options")


def read_preset(options: type[Options], name: str, **given: Any) -> Options:
    """A preset as its script would read it.

    Args:
        options: the script's dataclass.
        name: of the file in configs/, as "voco/plus".
        given: further options, tuples for those that take several values.
    """
    words = []
    for key, value in given.items():
        words += [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))]
    arguments = ["--config", str(ROOT / "configs" / f"{name}.yaml"), *words, "--output", "unused"]
    return parse_options(options, arguments, prog="", description="")
