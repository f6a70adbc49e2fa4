"""Options are declared once; what is made from the declarations agrees with them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

import fastsock
from fastsock.cli import cli, run
from fastsock.cli.options_page import page
from fastsock.cli.parameters import long_flag
from fastsock.client.options import LoadKeywords, LoadOptions
from fastsock.client.percentiles import Percentiles
from fastsock.client.stages import Stages
from fastsock.client.targets import Targets
from fastsock.options import (
    Addresses,
    Choice,
    Count,
    Cpus,
    Descriptors,
    FileMode,
    Flag,
    Line,
    Option,
    Ranges,
    Rate,
    Seconds,
    Size,
    Text,
    declared,
)
from fastsock.server import engines
from fastsock.server.faults import Faults
from fastsock.server.options import ServerKeywords, ServerOptions

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
BOTH = [("serve", ServerOptions, ServerKeywords), ("load", LoadOptions, LoadKeywords)]
EVERY_OPTION = [(command, each) for command, options, _ in BOTH for each in declared(options)]
every_option = pytest.mark.parametrize(
    ("command", "option"), EVERY_OPTION, ids=[f"{c}-{o.name}" for c, o in EVERY_OPTION]
)

#: What may be given in Python for an option of a kind.
GIVEN: dict[type, Any] = {
    Size: int | str,
    Seconds: float | str,
    Rate: float | str,
    Flag: bool,
    FileMode: int,
    Line: bytes,
    Descriptors: Iterable[int],
    Cpus: Iterable[int] | None,
    Ranges: Iterable[str],
    Stages: str | Sequence[str],
    Addresses: Iterable[str],
    Text: str,
    Targets: Iterable[str],
    Percentiles: Iterable[float],
    Faults: Iterable[str],
}


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize(("command", "options", "keywords"), BOTH, ids=["serve", "load"])
def test_the_keywords_are_the_options(command: str, options: type, keywords: type) -> None:
    """The TypedDict has the names of the dataclass, in its order, and the types of the kinds."""
    hints = get_type_hints(keywords)
    assert list(hints) == [each.name for each in declared(options)]
    for each in declared(options):
        assert hints[each.name] == given(each), each.name


def given(option: Option) -> Any:
    if isinstance(option.kind, Choice):
        expected: Any = option.kind.literal
    elif isinstance(option.kind, Count):
        expected = int | str if option.kind.units else int
    else:
        expected = GIVEN[type(option.kind)]
    return expected | None if option.default is None else expected


def test_the_engines_are_those_that_are_built_or_missing() -> None:
    assert sorted(get_args(get_type_hints(ServerKeywords)["engine"])) == sorted(
        ["auto", *engines.WORKERS, *engines.MISSING]
    )


@every_option
def test_a_default_is_a_value(command: str, option: Option) -> None:
    """Each default passes its own check, and reads back from what is shown of it."""
    if option.default is None:
        return
    checked = option.kind.check(option.name, option.default)
    assert checked == option.default
    shown = option.shown_default
    if shown and not isinstance(option.kind, Flag):
        assert option.kind.parse(option.name, shown) == checked


@every_option
def test_the_help_can_be_read_alone(command: str, option: Option) -> None:
    """It is a sentence that begins with a verb or so, and fits a line of 80 columns."""
    assert re.fullmatch(r"[A-Z].{10,71}\.", option.help)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (fastsock.serve, ServerOptions),
        (fastsock.Server, ServerOptions),
        (fastsock.load, LoadOptions),
    ],
    ids=["serve", "Server", "load"],
)
def test_help_shows_every_option(function: Callable[..., Any], options: type) -> None:
    """inspect.signature() has each name and default, and the docstring each name and unit."""
    parameters = inspect.signature(function).parameters
    text = inspect.getdoc(function)
    assert text is not None and "{options}" not in text
    for each in declared(options):
        assert parameters[each.name].default == each.default
        assert parameters[each.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n    {each.name}: {each.help[:30]}" in text
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def test_a_subclass_has_its_own_signature() -> None:
    class Mine(fastsock.Server):
        def __init__(self, port: int) -> None:
            super().__init__(("127.0.0.1", port))

    assert list(inspect.signature(Mine).parameters) == ["port"]


@every_option
def test_the_command_line_has_every_option(command: str, option: Option) -> None:
    """With its flag, and with a name from which click makes the environment variable."""
    parameters = {flag: each for each in command_of(command).params for flag in each.opts}
    assert long_flag(option) in parameters
    assert set(option.flags) <= set(parameters)


@pytest.mark.parametrize(
    "command", ["serve", "load", "report", "compare", "merge", "bench", "info"]
)
def test_help_fits_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_page_is_up_to_date() -> None:
    """docs/options.md is what ``python -m fastsock.cli.options_page`` prints."""
    assert PAGE.read_text() == page()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"buffer_size": "64k"}, {"buffer_size": 65536}),
        ({"idle_timeout": "1min", "drain_timeout": ".1s"}, {"idle_timeout": 60.0}),
        ({"busy_poll": "50us"}, {"busy_poll": 0.00005}),
        ({}, {"busy_poll": "auto"}),
        ({"busy_poll": "auto", "engine": "threads"}, {"busy_poll": 0.0}),
        ({"fds": range(3, 5)}, {"fds": (3, 4)}),
        ({"cpus": None}, {"cpus": ()}),
        ({"allow": ["10.0.0.0/8"]}, {"allow": ((bytes(10) + b"\xff\xff\n\0\0\0", 104),)}),
    ],
    ids=str,
)
def test_what_a_server_makes_of_it(options: dict[str, Any], expected: dict[str, Any]) -> None:
    made = ServerOptions(**options)
    assert {name: getattr(made, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"size": 64, "duration": 5.0, "warmup": 0.5}),
        ({"size": "1M", "rate": "10k/s"}, {"size": 1 << 20, "rate": 10_000.0}),
        ({"duration": "500ms", "warmup": 0}, {"duration": 0.5, "warmup": 0.0}),
        ({"messages": "10k"}, {"messages": 10_000, "duration": None, "warmup": 0.0}),
    ],
    ids=str,
)
def test_what_a_load_makes_of_it(options: dict[str, Any], expected: dict[str, Any]) -> None:
    made = LoadOptions(**options)
    assert {name: getattr(made, name) for name in expected} == expected


def test_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong value in a variable is an error like one on the command line."""
    monkeypatch.setenv("FASTSOCK_SERVE_FD", "3 -4")
    assert run(["serve"]) == 2
    assert "descriptor -4 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["\u0663", "-\u0663", "1" * 5000, "+3", "", "-"])
def test_a_count_is_of_plain_digits(text: str) -> None:
    """It is one line; int() would take the digits of every script, and raise its own error."""
    with pytest.raises(ValueError, match=r"^workers .{1,120}$"):
        Count(1, 1024).parse("workers", text)


def test_names_are_completed() -> None:
    """The shell completes the names of a choice."""
    serve = command_of("serve")
    parameters = {each.name: each for each in serve.params}
    engine = parameters["engine"]
    with serve.make_context("serve", [], resilient_parsing=True) as context:
        found = engine.type.shell_complete(context, engine, "e")
    assert [each.value for each in found] == ["epoll"]
