"""One file a format: its name is the file's name, its help the docstring, its options the keyword-only parameters."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from curate.data import Record, Reject
from curate.errors import CurateError, unknown


def names() -> list[str]:
    """All formats: the modules of this package that do not start with an underscore."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    if name not in names():
        raise unknown("format", name, names())
    return importlib.import_module(f"{__name__}.{name}")


def options(name: str) -> dict[str, inspect.Parameter]:
    """The format's options with resolved annotations and defaults."""
    parameters = inspect.signature(load(name).read, eval_str=True).parameters
    return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def summary(name: str) -> str:
    """The first line of the format's help."""
    return (inspect.getdoc(load(name)) or "").partition("\n")[0]


def read(
    name: str, root: Path, labels: Path | None, fully_labelled: bool, options: Mapping[str, Any]
) -> Iterator[Record | Reject]:
    """The records below `root`. Name, options and root are checked at once; files are read while iterating."""
    module = load(name)
    _check_options(name, options)
    if not root.is_dir():
        remedy = "Give the folder that holds the images: --data, or `data` in project.toml"
        raise CurateError(f"data root '{root}' is not a folder. {remedy}")
    found: Iterator[Record | Reject] = module.read(root, labels, fully_labelled, **options)
    return found


def discover_classes(
    name: str, root: Path, labels: Path | None, fully_labelled: bool, options: Mapping[str, Any]
) -> list[str]:
    """The classes that the format defines, else all labels that occur in the data, by name."""
    fixed: tuple[str, ...] | None = getattr(load(name), "CLASSES", None)
    if fixed is not None:
        return list(fixed)
    records = (found for found in read(name, root, labels, fully_labelled, options) if isinstance(found, Record))
    return sorted({label for r in records for label in (*r.classes, *(region.label for region in r.regions))})


def _check_options(name: str, given: Mapping[str, Any]) -> None:
    known = options(name)
    for key, value in given.items():
        if key not in known:
            raise unknown(f"option of format {name}", key, known)
        if not _fits(value, known[key].annotation):
            expected = _type_name(known[key].annotation)
            raise CurateError(f"option '{key}' of format {name} is {value!r}; allowed: {expected}")


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
    # In Python a bool is an int, in a project file it is a mistake.
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:
        return " or ".join(repr(one) for one in inner)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_type_name(one) for one in inner if one is not type(None))
    return str(hint) if kind else str(hint.__name__)
