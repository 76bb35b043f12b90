"""A small part of `python -m tests.kill.run`: commands are killed at some of their writes, and lose nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from curate.index import database
from tests.fakes import REPOSITORY


def test_killed_commands_lose_nothing_and_complete() -> None:
    command = [sys.executable, "-m", "tests.kill.run", "--only", "index-edits,resolve", "--kills", "3", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != database.URI}
    environment |= {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    found = json.loads(ended.stdout) if ended.stdout else {}
    assert ended.returncode == 0, json.dumps(found, indent=1) or ended.stderr
    kills = [one["kills_at_writes"] for one in found["commands"]]
    assert kills == [3, 3], ended.stderr
    assert [one["labels_lost"] for one in found["commands"]] == [0, 0]
