"""Plug-in folders: formats, exporters, encoders and strategies are found, documented and configured in one way.

Each is one file: its name is the plug-in's name, its docstring the help, the keyword-only parameters of its one
function the options. No base class, no registry, no decorator.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from curate.errors import CurateError, unknown


@dataclass(frozen=True)
class Catalogue:
    """The plug-ins of a package.

    Args:
        package: The package whose modules are the plug-ins.
        what: Their kind, for messages: "format".
        function: The one function that each of them has.
        also: Packages of other rooms that hold more of them.
    """

    package: str
    what: str
    function: str
    also: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Return the names of all plug-ins: modules without an underscore in front."""
        return sorted(self._homes())

    def load(self, name: str) -> ModuleType:
        """Import a plug-in. Raises CurateError for an unknown name."""
        homes = self._homes()
        if name not in homes:
            raise unknown(self.what, name, self.names())
        return importlib.import_module(f"{homes[name]}.{name}")

    def _homes(self) -> dict[str, str]:
        """Return the package that each plug-in lies in."""
        homes: dict[str, str] = {}
        for package in (*self.also, self.package):
            path = importlib.import_module(package).__path__
            homes |= {module.name: package for module in pkgutil.iter_modules(path) if not module.name.startswith("_")}
        return homes

    def call(self, name: str) -> Any:
        """Return the plug-in's one function."""
        return getattr(self.load(name), self.function)

    def summary(self, name: str) -> str:
        """Return the first line of its help."""
        return (inspect.getdoc(self.load(name)) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """Return its options with their types and defaults."""
        parameters = inspect.signature(self.call(name), eval_str=True).parameters
        return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def parse(self, name: str, given: Sequence[str]) -> dict[str, Any]:
        """Return the options that `--set key=value ...` gives, checked; a value that is not JSON is text."""
        options: dict[str, Any] = {}
        for text in given:
            key, separator, value = text.partition("=")
            if not separator:
                raise CurateError(
                    f"--set '{text}' is not key=value; options of {name}: {', '.join(self.options(name)) or 'none'}"
                )
            options[key] = _value(value)
        self.check(name, options)
        return options

    def check(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise CurateError for an unknown option or a value of the wrong type."""
        known = self.options(name)
        for key, value in given.items():
            if key not in known:
                raise unknown(f"option of {self.what} {name}", key, known)
            if not _has_type(value, known[key].annotation):
                expected = _type_name(known[key].annotation)
                raise CurateError(f"option '{key}' of {self.what} {name} is {value!r}; allowed: {expected}")


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


def _has_type(value: object, hint: Any) -> bool:
    """Return True if `value` is of the type `hint`, one of the few types that options use."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_has_type(value, option) for option in inner)
    if kind is typing.Literal:
        return value in inner
    if kind is list:
        return isinstance(value, list) and all(_has_type(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _has_type(k, inner[0]) and _has_type(v, inner[1]) for k, v in value.items()
        )
    # For Python a bool is an int; as an option it is a mistake. 1 may stand for 1.0.
    wanted = (int, float) if hint is float else hint
    return isinstance(value, wanted) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return " or ".join(repr(value) for value in inner)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in inner if option is not type(None))
    return str(hint) if kind else str(hint.__name__)
