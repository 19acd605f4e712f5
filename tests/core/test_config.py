"""Options: presets first, command line last, exact names, one line for every mistake."""

import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from src.core.config import check_range, parse_options, save_options
from src.core.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of no script."""

    input: Path
    """Where to read."""

    windows: tuple[str, ...] = ("soft",)
    """Channels, in order."""

    fold: tuple[int, ...] | None = None
    """Folds."""

    test_patients: int = 10
    """How many."""

    lr: float = 1e-4
    """Rate."""

    overwrite: bool = False
    """Replace."""

    def __post_init__(self) -> None:
        if self.test_patients < 0:
            raise ValueError("--test-patients must be at least 0")


def parse(*argv: str) -> Options:
    return parse_options(Options, list(argv), prog="script.py", description="Does nothing.")


def preset(tmp_path: Path, name: str, text: str) -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("config_first", [True, False])
def test_parse_options_prefers_the_command_line_to_presets_in_any_order(tmp_path, config_first):
    config = ["--config", preset(tmp_path, "a.yaml", "lr: 1e-3\ntest_patients: 5\n")]
    given = ["--input", "raw", "--lr", "0.5"]
    options = parse(*(config + given if config_first else given + config))
    assert (options.lr, options.test_patients) == (0.5, 5)


def test_parse_options_prefers_the_later_preset(tmp_path):
    first = preset(tmp_path, "a.yaml", "lr: 1e-3\ntest_patients: 5\n")
    second = preset(tmp_path, "b.yaml", "lr: 1e-2\n")
    options = parse("--config", first, "--config", second, "--input", "raw")
    assert (options.lr, options.test_patients) == (1e-2, 5)


def test_parse_options_takes_the_section_of_its_script_from_a_profile(tmp_path):
    sections = "script: {lr: 1e-3, windows: [soft, '1']}\nother: {anything: 1}\nempty: {}\n"
    profile = ["--config", preset(tmp_path, "profile.yaml", sections), "--input", "raw"]
    first = ["--config", preset(tmp_path, "a.yaml", "lr: 1e-2\ntest_patients: 5\n")]
    options = parse(*first, *profile)
    assert (options.lr, options.test_patients, options.windows) == (1e-3, 5, ("soft", "1"))
    assert parse(*profile, *first).lr == 1e-2
    for prog in ("python -m src.cls.script", "program script"):
        assert parse_options(Options, profile, prog=prog, description="").lr == 1e-3
    for prog in ("third.py", "empty.py"):
        assert parse_options(Options, profile, prog=prog, description="") == parse("--input", "raw")
    with pytest.raises(UserError, match=r"profile\.yaml: unknown option anything"):
        parse_options(Options, profile, prog="other.py", description="")


def test_parse_options_keeps_text_in_lists_as_text():
    options = parse("--input", "raw", "--windows", "soft", "1", "a, b", "--fold", "0", "3")
    assert options.windows == ("soft", "1", "a, b")
    assert options.fold == (0, 3)


def test_parse_options_takes_a_switch_without_a_value():
    assert parse("--overwrite", "--input", "raw").overwrite is True


def test_parse_options_reads_what_save_options_wrote(tmp_path):
    options = parse("--input", "raw", "--fold", "1", "2", "--lr", "3e-4")
    save_options(options, tmp_path / "run" / "config.yaml")
    assert parse("--config", str(tmp_path / "run" / "config.yaml")) == options


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "--input is required"),
        (["--input", "raw", "--learning-rate", "1"], "unknown option --learning-rate"),
        (["--inp", "raw"], "did you mean --input"),
        (["--input", "raw", "--test_patients", "1"], "did you mean --test-patients"),
        (["--input", "raw", "--lr", "fast"], "--lr: expected float, got 'fast'"),
        (["--input", "raw", "--fold", "first"], "--fold: expected"),
        (["--input", "raw", "extra"], "--input takes one value"),
        (["--input", "raw", "--lr"], "--lr needs a value"),
        (["--input", "raw", "--test-patients", "-1"], "at least 0"),
        (["--input", "raw", "--config", "no.yaml"], "no preset file no.yaml"),
        (["raw"], "unexpected argument 'raw'"),
    ],
)
def test_parse_options_names_every_mistake_in_one_line(argv, part):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lrr: 1\n", "unknown option lrr; did you mean lr?"),
        ("- 1\n", "option: value"),
        ("a: [", "not valid YAML"),
    ],
)
def test_parse_options_names_the_preset_of_a_mistake(tmp_path, text, part):
    path = preset(tmp_path, "bad.yaml", text)
    with pytest.raises(UserError) as caught:
        parse("--input", "raw", "--config", path)
    assert path in str(caught.value)
    assert part in str(caught.value)


def test_parse_options_shows_help_with_options_as_they_are_typed(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--test-patients" in text and "_" not in text.split("options:")[1].replace("TEST_PATIENTS", "")
    assert "Channels, in order." in text


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ({"above": 0}, 0.0, "option --size-mm must be above 0, got 0.0"),
        ({"above": 0}, float("nan"), "option --size-mm must be above 0, got nan"),
        ({"at_least": 0, "below": 1}, 1.0, "option --size-mm must be at least 0 and below 1, got 1.0"),
        ({"at_least": 0, "at_most": 1}, -0.5, "option --size-mm must be at least 0 and at most 1, got -0.5"),
    ],
)
def test_check_range_names_the_option_and_its_bounds(bounds, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_range(SimpleNamespace(size_mm=value), "size_mm", **bounds)


def test_check_range_accepts_values_on_closed_bounds():
    check_range(SimpleNamespace(low=0, high=1), "low", "high", at_least=0, at_most=1)
