"""The App's plug-ins: ours beside those of the user, and which of them failed to load.

FiftyOne looks for plug-ins in one folder. `curate app` gives it `work/plugins/`, which holds a link to ours and one to
the user's folder, so that neither hides the other. FiftyOne only logs what fails to load; `faults` names it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from curate.index import database

FOLDER = "FIFTYONE_PLUGINS_DIR"
NAME = "@curate/desk"
OURS = Path(__file__).parents[1] / "app"
UNREADABLE = "its fiftyone.yml cannot be read"


def linked(folder: Path, theirs: str | Path | None) -> Path:
    """Make `folder` hold a link to our plug-in and one to the user's folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"curate": OURS}
    if theirs and Path(theirs).is_dir() and Path(theirs).resolve() != folder.resolve():
        wanted["user"] = Path(theirs).absolute()
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in wanted:
            link.unlink(missing_ok=True)
    for name, target in wanted.items():
        link, aside = folder / name, folder / f".{name}.{os.getpid()}.part"
        if not link.is_symlink() or Path(os.readlink(link)) != target:
            aside.unlink(missing_ok=True)
            aside.symlink_to(target)
            os.replace(aside, link)
    return folder


def faults() -> dict[str, str]:
    """Load every plug-in as `curate app` does; return the reason of each that fails, by its name or folder.

    No database is needed. FiftyOne is imported if it is not yet, and can then connect to none in this process.
    """
    fo = _fiftyone()
    from fiftyone.plugins import context, core

    with tempfile.TemporaryDirectory() as folder:
        before, fo.config.plugins_dir = fo.config.plugins_dir, str(linked(Path(folder), fo.config.plugins_dir))
        try:
            contexts = context.build_plugin_contexts()
            failed = {item.name: _last_line(item.errors[0]) for item in contexts if item.errors}
            readable = {package.path for package in core._list_plugins() if isinstance(package.name, str)}
            places = {os.path.dirname(file) for file in core._iter_plugin_metadata_files()}
            return failed | {os.path.realpath(place): UNREADABLE for place in sorted(places - readable)}
        finally:
            fo.config.plugins_dir = before


def _fiftyone() -> Any:
    database.silence_fiftyone()
    if "fiftyone" not in sys.modules:
        with database.environment({database.URI: "mongodb://127.0.0.1:1"}):  # read now, used by the first query
            import fiftyone
    import fiftyone

    return fiftyone


def _last_line(trace: str) -> str:
    return (trace.strip().splitlines() or ["no reason given"])[-1]
