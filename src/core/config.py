"""Options of a script: one frozen dataclass, filled from presets (YAML) and the command line.

jsonargparse checks the types and prints the help. This wrapper adds: presets apply first and `--key value`
wins in any order, names must be exact, list options take several values, and every error is one line.
"""

import dataclasses
import difflib
import json
import operator
import re
import sys
import typing
from argparse import SUPPRESS, Action, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from src.core.errors import UserError

Options = TypeVar("Options")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Type of every `--precision` option; `auto` is bf16 or fp16 on a GPU and fp32 on a CPU."""

Execution = Literal["eager", "compile", "graph"]
"""Type of every `--execution` option: how the networks of a training step are run."""

Doubtful = Literal["skip", "keep"]
"""Type of every `--doubtful` option: whether to train on series whose pixels may be wrong."""

Tracking = Literal["none", "wandb"]
"""Type of every `--track` option: where metrics are sent besides metrics.csv and TensorBoard events."""

FirstWeights = Literal["imagenet", "package", "none"] | Path
"""Type of every `--first-weights` option: `package` has ImageNet weights of one backbone, none is random."""

ROOT = Path(__file__).resolve().parents[2]
"""Root of the repository: presets relative to it are found from any working directory."""


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of a script's docstring and shows defaults."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.default is None or action.default in (SUPPRESS, ()):
            return text
        values = action.default if isinstance(action.default, tuple | list) else (action.default,)
        return f"{text} (default: {' '.join(map(str, values))})"


class _Parser(ArgumentParser):
    """Prints options with hyphens and raises `UserError` where argparse would print its usage and exit."""

    def format_help(self) -> str:
        text = super().format_help()
        for name in self.field_types:
            text = text.replace(f"--{name}", option_flag(name))
        return text

    def error(self, message: str, exception: Exception | None = None) -> typing.NoReturn:
        raise UserError(_explain(message, self.field_types))


def parse_options(
    cls: type[Options], argv: list[str] | None = None, *, prog: str, description: str
) -> Options:
    """Fill the dataclass `cls` from `argv` (default: the process's own arguments).

    `--config FILE` may be repeated; later files override earlier ones, and the command line overrides all
    files. A file is a preset, which names options, or a profile, which has a section of options for each of
    several scripts: that of `prog` applies. `--help` prints the description and every option with its
    default, and exits with status 0.

    Raises:
        UserError: an unknown or abbreviated option, an unknown key in a preset, a value of the wrong type, a
            missing required option, or a combination that the dataclass's `__post_init__` refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    parser = _build_parser(cls, prog, description)
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        print(parser.format_help(), end="")
        raise SystemExit(0)
    given = _split_arguments(argv, cls)
    script = prog.rpartition(" ")[2].removesuffix(".py").rpartition(".")[2]
    configs = [_find_preset(path) for path in given.pop("config", [])]
    arguments = [f"--config={json.dumps(_read_preset(path, tuple(fields), script))}" for path in configs]
    for name, values in given.items():
        value = _as_yaml_list(values, _field_type(cls, name)) if _is_list(cls, name) else values[0]
        arguments.append(f"--{name}={value}")
    namespace = parser.parse_args(arguments)
    missing = [name for name, field in fields.items() if _required(field) and namespace.get(name) is None]
    if missing:
        raise UserError(f"option {option_flag(missing[0])} is required (see {prog} --help)")
    try:
        return cls(**{name: namespace.get(name) for name in fields})
    except ValueError as error:
        raise UserError(str(error)) from None


def option_flag(name: str) -> str:
    """Return a field's name as typed on the command line: `warmup_epochs` -> `--warmup-epochs`."""
    return f"--{name.replace('_', '-')}"


def check_range(
    options: Any,
    *names: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check that each option of `names` is within bounds (NaN never is); for `__post_init__`.

    Raises:
        ValueError: an option is out of bounds; the message contains its name as typed.
    """
    bounds = (
        ("above", above, operator.gt),
        ("at least", at_least, operator.ge),
        ("below", below, operator.lt),
        ("at most", at_most, operator.le),
    )
    given = [(words, bound, holds) for words, bound, holds in bounds if bound is not None]
    for name in names:
        value = getattr(options, name)
        if not all(holds(value, bound) for _, bound, holds in given):
            wanted = " and ".join(f"{words} {bound:g}" for words, bound, _ in given)
            raise ValueError(f"option {option_flag(name)} must be {wanted}, got {value}")


def save_options(options: Any, path: str | Path) -> None:
    """Write the resolved options as YAML that `--config` reads back."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(plain_options(options), sort_keys=False), encoding="utf-8")


def plain_options(options: Any) -> dict[str, Any]:
    """Return the options as plain Python values (no `Path`, no tuple), for checkpoints and tables."""
    return {key: _plain(value) for key, value in dataclasses.asdict(options).items()}


def _build_parser(cls: type, prog: str, description: str) -> _Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        print_config=None,
        formatter_class=_HelpFormatter,
    )
    parser.field_types = typing.get_type_hints(cls)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="preset in YAML; repeatable, later files win"
    )
    parser.add_class_arguments(cls, as_group=False, fail_untyped=True)
    required = {field.name for field in dataclasses.fields(cls) if _required(field)}
    for action in parser._actions:
        if action.dest in required:
            action.help = f"{action.help} (required)"
        action.required = False  # checked after parsing, so that the message contains the option as typed
    return parser


def _split_arguments(argv: list[str], cls: type) -> dict[str, list[str]]:
    """Group the command line as option name -> values; a repeated option keeps its last values."""
    options = {field.name.replace("_", "-"): field.name for field in dataclasses.fields(cls)} | {
        "config": "config"
    }
    given: dict[str, list[str]] = {}
    current: str | None = None
    for token in argv:
        if token.startswith("--"):
            flag, equals, value = token[2:].partition("=")
            if flag not in options:
                close = difflib.get_close_matches(flag.replace("_", "-"), options, n=1)
                hint = f"; did you mean --{close[0]}?" if close else "; --help lists them"
                raise UserError(f"unknown option --{flag}{hint}")
            current = options[flag]
            if current != "config":
                given[current] = []
            given.setdefault(current, []).extend([value] if equals else [])
        elif current is None:
            raise UserError(f"unexpected argument {token!r}: options are given as --name value")
        else:
            given[current].append(token)
    for name, values in given.items():
        flag = option_flag(name)
        if not values and _is_bool(cls, name):
            values.append("true")
        if not values:
            raise UserError(f"option {flag} needs a value")
        if len(values) > 1 and name != "config" and not _is_list(cls, name):
            raise UserError(f"option {flag} takes one value, got {len(values)}: {' '.join(values)}")
    return given


def _find_preset(name: str) -> Path:
    for path in (Path(name), ROOT / name):
        if path.is_file():
            return path.resolve()
    raise UserError(f"no preset file {name}; presets are in {ROOT / 'configs'}")


def _read_preset(path: Path, names: tuple[str, ...], script: str) -> dict[str, Any]:
    """Return the options of a preset, or those of a script in a profile."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `option: value` lines")
    if content and all(isinstance(section, dict) for section in content.values()):
        content = content.get(script, {})
    for key in content:
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UserError(f"{path}: unknown option {key}{hint}")
    return content


def _explain(message: str, types: dict[str, Any]) -> str:
    """Reduce jsonargparse's multi-line message to one line that contains the option as typed."""
    named = re.search(r'key "(\w+)"', message)
    values = re.findall(r"(?:Got|Given) value: (.*)", message)
    if named and values and named[1] in types:
        kinds = _alternatives(types[named[1]])
        expected = " or ".join(map(_describe, kinds))
        is_text = any(str in typing.get_args(kind) for kind in kinds)  # YAML reads ids as numbers
        hint = f': put ids and names in quotes, {named[1]}: ["{values[0]}"]' if is_text else ""
        return f"option {option_flag(named[1])}: expected {expected}, got {values[0]!r}{hint}"
    return " ".join(message.split())


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        *others, last = map(str, typing.get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if kind is type(None):
        return "nothing"
    items = typing.get_args(kind)
    if not items:
        return kind.__name__
    kinds = dict.fromkeys(_describe(item) for item in items if item is not ...)
    count = "" if ... in items else f"{len(items)} "
    return f"{count}values ({' or '.join(kinds)})"


def _field_type(cls: type, name: str) -> Any:
    return typing.get_type_hints(cls)[name] if name != "config" else list[str]


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, type(int | None))
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_list(cls: type, name: str) -> bool:
    return any(typing.get_origin(kind) in (tuple, list) for kind in _alternatives(_field_type(cls, name)))


def _is_bool(cls: type, name: str) -> bool:
    return bool in _alternatives(_field_type(cls, name))


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_yaml_list(values: list[str], annotation: Any) -> str:
    """Format values as a YAML list. Numbers stay bare; text is quoted, so `1` and `a, b` remain text."""
    items = {typing.get_args(kind)[0] for kind in _alternatives(annotation) if typing.get_args(kind)}
    numeric = items <= {int, float}
    return "[" + ", ".join(value if numeric else json.dumps(value) for value in values) + "]"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
