"""What every command has: options in groups, an example, variables, and errors of one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from fastsock import suggestions
from fastsock.cli.output import warn
from fastsock.endpoint import Endpoint

_PREFIX = "FASTSOCK"
#: What Kubernetes puts into the environment for a service that is called, say, fastsock-load.
_KUBERNETES = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT = re.compile(r"(\w+_)?PORT=(tcp|udp|sctp)://.*")
#: What a metavar stands for, with an example.
_UNITS = {
    "SIZE": "SIZE: bytes, as in 64k (65536).",
    "DURATION": "DURATION: seconds, as in 500us, 1.5s or 2min.",
    "RATE": "RATE: messages per second, as in 10k/s (10000).",
}


class Command(click.Command):
    """A command whose help ends with an example, and each of whose options has a variable.

    Options that follow one with a `group` belong to it too, up to the next one with a group.
    """

    def __init__(self, *args: Any, example: str, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.example = example
        for parameter in self.params:
            parameter.envvar = self._variable(parameter)

    def _variable(self, parameter: click.Parameter) -> str:
        name = parameter.name or ""
        if isinstance(parameter, click.Option):
            name = flag_of(parameter).lstrip("-").replace("-", "_")
        return f"{_PREFIX}_{self.name}_{name}".upper()

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        typed = list(args)  # click empties the list
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except click.NoSuchOption as error:
            raise click.UsageError(self._no_such_option(error.option_name, typed)) from None
        except click.BadOptionUsage as error:
            raise click.UsageError(self._no_value(error.option_name)) from None
        except click.MissingParameter:
            raise click.UsageError(
                f"{self.name} needs {self._arguments()}, as in: {self.example.splitlines()[0]}"
            ) from None
        except click.BadParameter as error:
            raise click.UsageError(self._bad_value(error)) from None
        if not context.resilient_parsing and not context.params.get("quiet"):
            for text in self._unknown_variables():
                warn(text)
        return context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        left = super().parse_args(ctx, args)
        if left and not ctx.resilient_parsing:
            ctx.fail(self._too_many(ctx, left))
        return left

    def _arguments(self) -> str:
        """Such as ``an ENDPOINT``, or ``BEFORE and AFTER``."""
        names = [_name_of(each) for each in self.params if isinstance(each, click.Argument)]
        return " and ".join(names).replace("the ", "an ")

    def _too_many(self, ctx: click.Context, left: Sequence[str]) -> str:
        first = ctx.params.get("endpoint")
        if first is None and self._arguments():
            return f"{self.name} takes {self._arguments()}, not also {left[0]!r}"
        if first is None:
            return f"{self.name} takes options only, not {left[0]!r}; see fastsock {self.name} -h"
        both = f"[{first}]:{left[0]}" if ":" in first else f"{first}:{left[0]}"
        if not _is_endpoint(first) and _is_endpoint(both):
            return f"write host and port as one: fastsock {self.name} {both}"
        return f"{self.name} takes one ENDPOINT; run it once for {first} and once for {left[0]}"

    def _flags(self) -> Iterator[str]:
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                yield from (*parameter.opts, *parameter.secondary_opts)

    def _no_such_option(self, flag: str, typed: Sequence[str]) -> str:
        names = [each.lstrip("-") for each in self._flags() if each.startswith("--")]
        where, name = "write it in the ENDPOINT: ", flag.lstrip("-")
        meant, remark = suggestions.for_option(name, names, f"{where}fastsock {self.name} ")
        if suggestions.is_address(name) and not meant:
            remark = f"{where}fastsock {self.name} {_address_in(typed)}"
        helps = f"did you mean --{meant}?" if meant else remark
        return f"{flag} is not an option of {self.name}; {helps or f'see fastsock {self.name} -h'}"

    def _no_value(self, flag: str) -> str:
        for parameter in self.params:
            flags = (*parameter.opts, *parameter.secondary_opts)
            if flag in flags and isinstance(parameter, click.Option):
                if parameter.is_flag:
                    return f"{flag} takes no value; write {' or '.join(flags)}"
                return f"{flag} needs a value: {flag} {metavar_of(parameter)}"
        return f"{flag} needs a value"

    def _bad_value(self, error: click.BadParameter) -> str:
        """Of a flag, which only a variable gives a wrong value; else what the error says."""
        parameter = error.param
        if isinstance(parameter, click.Option) and parameter.is_flag:
            value = os.environ.get(str(parameter.envvar))
            return f"{parameter.envvar} {value!r} is neither on nor off; write 1 or 0"
        return error.message

    def _unknown_variables(self) -> Iterator[str]:
        known = {str(parameter.envvar) for parameter in self.params}
        prefix = f"{_PREFIX}_{self.name}_".upper()
        for name, value in sorted(os.environ.items()):
            if not name.startswith(prefix) or name in known or _is_kubernetes(name, value):
                continue
            option = name.removeprefix(prefix).lower().replace("_", "-")
            names = {each.removeprefix(prefix).lower().replace("_", "-") for each in known}
            meant, remark = suggestions.for_option(option, names, self._address_variable())
            if meant:
                remark = f"did you mean {prefix}{meant.upper().replace('-', '_')}?"
            if option.startswith("no-") and option.removeprefix("no-") in names:
                remark = f"write {prefix}{name.removeprefix(f'{prefix}NO_')}=0"
            yield f"{name} sets nothing; {remark or 'no option has this name'}"

    def _address_variable(self) -> str:
        arguments = [each for each in self.params if isinstance(each, click.Argument)]
        return f"set {arguments[0].envvar}=" if arguments else "no option takes "

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        heading = "Options"
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "group", "") or heading
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        metavars = "|".join(map(metavar_of, self.params))
        units = [text for metavar, text in _UNITS.items() if metavar in metavars]
        first = next(each for each in self.params if isinstance(each, click.Option))
        variables = [f"{first.envvar} sets {flag_of(first)}, and so on for each option."]
        for each in self.params:
            if isinstance(each, click.Argument):
                several = ", with spaces between several" * (each.nargs < 0)
                variables.append(f"{each.envvar} sets {_name_of(each)}{several}.")
        sections = {
            "Units": "\n".join(units),
            "Environment": "\n".join(variables),
            "Example": self.example,
        }
        for heading, text in sections.items():
            if text:
                with formatter.section(heading):
                    for line in text.splitlines():
                        formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class GroupedOption(click.Option):
    """An option that may begin a group of the help."""

    def __init__(self, *args: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.group = group


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the library's error about a bad option into a usage error, exit code 2."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        command = click.get_current_context().command
        raise click.UsageError(_in_flags(str(error), command)) from None


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn the library's error about a file into a usage error; its words are no options."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def flag_of(parameter: click.Parameter) -> str:
    """``--name`` of an option."""
    return next((each for each in parameter.opts if each.startswith("--")), parameter.opts[0])


def metavar_of(parameter: click.Parameter) -> str:
    """What stands for its value in a line of usage; empty for a flag."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return ""
    return parameter.metavar or parameter.type.name


def _name_of(argument: click.Argument) -> str:
    """Such as ``the ENDPOINT``, or ``BEFORE``."""
    name = argument.human_readable_name.strip("[].")
    return f"the {name}" if name == "ENDPOINT" else name


def name_given(parameter: click.Parameter | None, ctx: click.Context | None, name: str) -> str:
    """How the user gave a value: by an option, or by a variable."""
    if parameter is None or ctx is None or parameter.name is None:
        return name
    if ctx.get_parameter_source(parameter.name) is click.core.ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    return flag_of(parameter) if isinstance(parameter, click.Option) else name


def _in_flags(text: str, command: click.Command) -> str:
    """A text about options of the library with their names as on the command line.

    The first word is such a name if it can be, and every word with an underscore.
    """
    options = [each for each in command.params if isinstance(each, click.Option)]
    flags = {flag_of(each).lstrip("-").replace("-", "_"): flag_of(each) for each in options}
    flags.update({str(each.name): flag_of(each) for each in options})
    first, space, rest = text.partition(" ")
    rest = re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda found: flags.get(found[0], found[0]), rest)
    return flags.get(first, first) + space + rest


def _is_endpoint(text: str) -> bool:
    try:
        Endpoint.parse(text)
    except ValueError:
        return False
    return True


def _address_in(typed: Sequence[str]) -> str:
    """The endpoint for what was typed with options of other tools; else how one is written."""
    values: list[str] = []
    for number, text in enumerate(typed):
        flag, equals, value = text.partition("=")
        if flag.startswith("-") and suggestions.is_address(flag.lstrip("-")):
            values += [value] if equals else typed[number + 1 : number + 2]
    host = next((value for value in values if not value.isdigit()), "")
    port = next((value for value in values if value.isdigit()), "7007")
    for text in (host, f"{host}:{port}", f"[{host}]:{port}"):
        if _is_endpoint(text):
            return text
    return "HOST:PORT"


def _is_kubernetes(name: str, value: str) -> bool:
    rest = name.split("_", 2)[2]
    return bool(_KUBERNETES.fullmatch(rest) or _KUBERNETES_PORT.fullmatch(f"{rest}={value}"))
