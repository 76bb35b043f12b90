"""One file a thing: formats, exporters, encoders and strategies are found, documented and configured alike.

The file's name is the thing's name, its docstring the help, the keyword-only parameters of its one function the
options. No base class, no registry, no decorator.
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
    """The modules of a package, each with the same one function; `also` names packages of other rooms with more."""

    package: str
    what: str
    function: str
    also: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """All of them: the modules that do not start with an underscore."""
        return sorted(self._homes())

    def load(self, name: str) -> ModuleType:
        homes = self._homes()
        if name not in homes:
            raise unknown(self.what, name, self.names())
        return importlib.import_module(f"{homes[name]}.{name}")

    def _homes(self) -> dict[str, str]:
        """Which package each module lies in."""
        homes: dict[str, str] = {}
        for package in (*self.also, self.package):
            path = importlib.import_module(package).__path__
            homes |= {module.name: package for module in pkgutil.iter_modules(path) if not module.name.startswith("_")}
        return homes

    def call(self, name: str) -> Any:
        return getattr(self.load(name), self.function)

    def summary(self, name: str) -> str:
        """The first line of its help."""
        return (inspect.getdoc(self.load(name)) or "").partition("\n")[0]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """Its options with resolved annotations and defaults."""
        parameters = inspect.signature(self.call(name), eval_str=True).parameters
        return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def parse(self, name: str, given: Sequence[str]) -> dict[str, Any]:
        """`--set key=value ...`; a value is JSON where it can be, else text. Checked."""
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
        known = self.options(name)
        for key, value in given.items():
            if key not in known:
                raise unknown(f"option of {self.what} {name}", key, known)
            if not _fits(value, known[key].annotation):
                expected = _type_name(known[key].annotation)
                raise CurateError(f"option '{key}' of {self.what} {name} is {value!r}; allowed: {expected}")


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError:
        return text


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number to compute with")


def _fits(value: object, hint: Any) -> bool:
    """Whether `value` is of the type `hint`; knows the few types that options use."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is typing.Literal:
        return value in inner
    if kind is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    # In Python a bool is an int, in a project file it is a mistake; and 1 is as good as 1.0.
    wanted = (int, float) if hint is float else hint
    return isinstance(value, wanted) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return " or ".join(repr(one) for one in inner)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_type_name(one) for one in inner if one is not type(None))
    return str(hint) if kind else str(hint.__name__)
