"""Plug-in folders: formats, exporters, encoders and strategies are found, documented and configured in one way.

Each is one file: its name is the plug-in's name, its docstring the help, the keyword-only parameters of its one
function the options. No base class, no registry, no decorator. Another package adds one by an entry point that names
such a module (see docs/example-plugin): it is imported when it is asked for, and built-in names win.
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
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from curate.errors import CurateError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BUILT_IN = "curate"
GROUPS = {  # entry points of other packages, by the folder of the built-in ones
    "curate.strategies": "curate.strategies",
    "curate.formats": "curate.formats",
    "curate.embed": "curate.encoders",
    "curate.exports": "curate.exports",
    "train.architectures": "curate.architectures",
    "synth.synthesisers": "curate.synthesisers",
}
FUNCTIONS = {  # that a module of each group must have
    "curate.strategies": ("select",),
    "curate.formats": ("read",),
    "curate.encoders": ("build",),
    "curate.exports": ("write",),
    "curate.architectures": ("build",),
    "curate.synthesisers": ("fit", "generate"),
}


class PluginInfo(NamedTuple):
    """A plug-in for a list. `origin`: its package and version; `problem`: why it cannot be used, or None."""

    name: str
    origin: str
    summary: str
    options: dict[str, inspect.Parameter]
    problem: str | None = None


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
        """Return the names of all plug-ins: modules without an underscore in front, and those of other packages."""
        return sorted({*self._homes(), *self._added()})

    def load(self, name: str) -> ModuleType:
        """Import a plug-in. Raises CurateError for an unknown name, or one of another package that is broken."""
        homes = self._homes()
        if name in homes:
            return importlib.import_module(f"{homes[name]}.{name}")
        if (point := self._added().get(name)) is not None:
            return load_added(point)
        raise unknown(self.what, name, self.names())

    def origin(self, name: str) -> str:
        """Return the package that a plug-in comes from: `curate`, or another one with its version."""
        point = self._added().get(name)
        return origin_of(point) if point else BUILT_IN

    def listing(self) -> list[PluginInfo]:
        """Return all plug-ins, each with the package that it comes from; a broken one with its problem."""
        homes = self._homes()
        listed: list[PluginInfo] = []
        for name in self.names():
            origin = self.origin(name)
            try:
                listed.append(PluginInfo(name, origin, self.summary(name), self.options(name)))
            except CurateError as error:
                listed.append(PluginInfo(name, origin, "", {}, str(error)))
        hidden = [point for name, point in _entry_points(self._group()).items() if name in homes]
        return [*listed, *(PluginInfo(p.name, origin_of(p), "", {}, _hidden(p)) for p in hidden)]

    def _group(self) -> str:
        return GROUPS.get(self.package, "")

    def _added(self) -> dict[str, EntryPoint]:
        """Return the plug-ins of other packages; built-in names win."""
        homes = self._homes()
        return {name: point for name, point in _entry_points(self._group()).items() if name not in homes}

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


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; of two packages with one name the first in the alphabet wins."""
    from importlib.metadata import entry_points

    points = sorted(entry_points(group=group), key=lambda point: (point.name, origin_of(point))) if group else []
    return {point.name: point for point in reversed(points)}


def added() -> list[tuple[str, EntryPoint]]:
    """Return all plug-ins of other packages, each with its group."""
    return [(group, point) for group in GROUPS.values() for point in _entry_points(group).values()]


def origin_of(point: EntryPoint) -> str:
    """Return the package that an entry point belongs to, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def load_added(point: EntryPoint) -> ModuleType:
    """Import a plug-in of another package. Raises CurateError with the reason where it is broken."""
    try:
        module = point.load()
        lacking = [name for name in FUNCTIONS[point.group] if not callable(getattr(module, name, None))]
        for name in set(FUNCTIONS[point.group]) - set(lacking):
            inspect.signature(getattr(module, name), eval_str=True)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise CurateError(f"{_named(point)} cannot be loaded ({reason}). Repair or remove that package") from error
    if not isinstance(module, ModuleType) or lacking:
        wanted = " and ".join(FUNCTIONS[point.group])
        raise CurateError(
            f"{_named(point)} is '{point.value}', which is no module with {wanted}(). Repair that package"
        )
    return module


def _hidden(point: EntryPoint) -> str:
    return f"{_named(point)} is left out: the name is built in"


def problem_of(point: EntryPoint) -> str | None:
    """Return why a plug-in of another package cannot be used, or None."""
    folder = next(folder for folder, group in GROUPS.items() if group == point.group)
    if point.name in Catalogue(folder, "", "")._homes():
        return _hidden(point)
    try:
        load_added(point)
    except CurateError as error:
        return str(error)
    return None


def _named(point: EntryPoint) -> str:
    return f"{point.group.removeprefix('curate.')} plug-in '{point.name}' of {origin_of(point)}"


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
