"""Commands of the command line as forms: their options, defaults and help are read from its functions."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from curate.errors import CurateError, unknown

HIDDEN = ("project", "json", "context")  # parameters that only a command line needs


@dataclass(frozen=True)
class CommandOption:
    """One option of a command, or with an empty flag an argument."""

    name: str
    flag: str
    off: str
    kind: type
    many: bool
    default: Any
    help: str
    low: float | None = None
    high: float | None = None

    @property
    def label(self) -> str:
        if self.flag == "--set":
            return "Settings"
        return (self.flag.removeprefix("--") or self.name).replace("-", " ").replace("_", " ").capitalize()


@cache
def options(command: tuple[str, ...]) -> dict[str, CommandOption]:
    """Return the options of a command, such as ("models", "promote"), by the names of its function's parameters."""
    function = _function(command)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.items()
    return {name: _option(name, hints[name], p.default) for name, p in parameters if name not in HIDDEN}


def summary(command: tuple[str, ...]) -> str:
    """Return the first line of a command's help."""
    return (inspect.getdoc(_function(command)) or "").partition("\n")[0]


def words(command: tuple[str, ...], given: Mapping[str, Any]) -> list[str]:
    """Return these values as words of the command line, checked; those that are empty or the default are left out.

    Each value is one word with its option, so that none can be taken for an option.
    """
    known = options(command)
    for name in given:
        if name not in known:
            raise unknown(f"option of curate {' '.join(command)}", name, known)
    flags = [word for name, value in given.items() if known[name].flag for word in _words(known[name], value)]
    arguments = [word for name, value in given.items() if not known[name].flag for word in _words(known[name], value)]
    return [*flags, *(["--", *arguments] if arguments else [])]


def _function(command: tuple[str, ...]) -> Any:
    from typer.main import get_command_name

    from curate.cli import app

    commands = app.registered_commands
    for group in app.registered_groups:
        if len(command) == 2 and group.name == command[0] and group.typer_instance is not None:
            commands = group.typer_instance.registered_commands
    for known in commands:
        if (known.name or get_command_name(getattr(known.callback, "__name__", ""))) == command[-1]:
            return known.callback
    raise CurateError(f"curate has no command '{' '.join(command)}'")


def _option(name: str, hint: Any, default: Any) -> CommandOption:
    kind, info = typing.get_args(hint)[:2]
    inner = [part for part in (typing.get_args(kind) or (kind,)) if part is not types.NoneType]
    if typing.get_origin(kind) is list:
        inner = [kind]
    many = typing.get_origin(inner[0]) is list
    plain = typing.get_args(inner[0])[0] if many else inner[0]
    # In `Annotated` the first name of an option stands where typer's `default` would.
    declared = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
    is_option = type(info).__name__ == "OptionInfo"
    flag, _, off = (declared[0] if declared else f"--{name.replace('_', '-')}" if is_option else "").partition("/")
    default = None if default is inspect.Parameter.empty else default
    text = (info.help or "").replace("\\[", "[")
    return CommandOption(name, flag, off, plain, many, default, text, info.min, info.max)


def _words(option: CommandOption, value: Any) -> Iterator[str]:
    if value is None or value == "" or value == [] or value == option.default:
        return
    if option.kind is bool:
        if not isinstance(value, bool):
            raise CurateError(f"{option.label}: {value!r} is neither true nor false")
        yield option.flag if value else option.off
        return
    values: Sequence[Any] = value if option.many and isinstance(value, list) else [value]
    for each in values:
        text = _text(option, each)
        yield f"{option.flag}={text}" if option.flag else text


def _text(option: CommandOption, value: Any) -> str:
    numbers = {int: (int,), float: (int, float)}
    allowed = numbers.get(option.kind, (str, int, float))
    if isinstance(value, bool) or not isinstance(value, allowed) or "\0" in str(value):
        raise CurateError(f"{option.label}: {value!r} is not allowed; allowed: {option.kind.__name__}")
    return str(value)
