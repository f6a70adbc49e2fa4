"""From declared options (fastsock/options.py) to click's, and click's types for human units."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fastsock.cli.command import GroupedOption, name_given
from fastsock.cli.output import check_writable
from fastsock.options import Choice, Flag, Kind, Option, declared

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    # Generic in newer releases of click only, so it is not subscripted at run time.
    _AnyType = click.ParamType[Any]
else:
    _AnyType = click.ParamType

_Command = TypeVar("_Command", bound=Callable[..., Any])


class KindType(_AnyType):
    """A click type that parses text as a kind of option does."""

    def __init__(self, kind: Kind, option_name: str) -> None:
        self.name = kind.metavar
        self._kind, self._option_name = kind, option_name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):  # a default
            return value
        try:
            return self._kind.parse(name_given(param, ctx, self._option_name), value)
        except ValueError as error:
            raise click.UsageError(str(error), ctx) from None

    def split_envvar_value(self, rv: str) -> list[str]:
        values = rv.split(self._kind.separator)
        return [value for value in values if value.strip()]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self._kind.metavar

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = self._kind.names if isinstance(self._kind, Choice) else ()
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def long_flag(option: Option) -> str:
    """``--name-of-the-option``, or the name that was declared for the command line."""
    named = [flag for flag in option.flags if flag.startswith("--")]
    return named[0] if named else f"--{option.name.replace('_', '-')}"


def flags(option: Option) -> tuple[str, ...]:
    """The command-line names of an option: the short one first, and one that turns it off."""
    long = long_flag(option)
    if isinstance(option.kind, Flag) and option.default:
        long = f"{long}/--no-{long.removeprefix('--')}"
    return (*(flag for flag in option.flags if not flag.startswith("--")), long)


def click_option(option: Option) -> Callable[[_Command], _Command]:
    default = option.shown_default
    settings: dict[str, Any] = {"default": option.default, "show_default": False}
    if isinstance(option.kind, Flag):
        settings["is_flag"] = True
        default = long_flag(option).removeprefix("--") if option.default else ""
    else:
        settings["type"] = KindType(option.kind, option.name)
        settings["multiple"] = option.kind.repeatable
    text = option.help
    if option.kind.repeatable:
        text = f"{text.removesuffix('.')} (repeatable)."
    settings["help"] = f"{text}  [default: {default}]" if default else text
    return click.option(
        *flags(option), option.name, cls=GroupedOption, group=option.group, **settings
    )


def options_of(options: type) -> Callable[[_Command], _Command]:
    """Add the declared options of a dataclass to a command, in their order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(declared(options)):
            command = click_option(option)(command)
        return command

    return decorate


def file_option(
    flag: str,
    help: str,
    *,
    stdout: bool = False,
    check: Callable[[str | None], str | None] = check_writable,
) -> Callable[[_Command], _Command]:
    """A file to write, as ``json_path``: checked before the run; `stdout` allows ``-`` for it."""

    def checked(
        context: click.Context, parameter: click.Parameter, value: str | None
    ) -> str | None:
        if value == "-" and not stdout:
            raise click.UsageError(f"{flag} - is not a file; name one")
        return check(value)

    return click.option(
        flag,
        f"{flag.removeprefix('--')}_path",
        cls=GroupedOption,
        group="Output",
        type=click.Path(allow_dash=stdout),
        metavar="FILE",
        help=help,
        callback=checked,
    )


json_option = file_option(
    "--json", "Write the result as JSON to this file; - is stdout.", stdout=True
)

quiet_option = click.option(
    "-q",
    "--quiet",
    cls=GroupedOption,
    group="Output",
    is_flag=True,
    help="Show no progress and no remarks, only the result and errors.",
)
