"""A MongoDB that a test may kill, and that comes back on the same port."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from curate import mongod
from tests.curate.index.test_browser import free_port


class Mongod:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.port = folder, free_port()
        self.start()

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}/?serverSelectionTimeoutMS=1000"  # not for half a minute: it is dead

    def start(self) -> None:
        where = ["--dbpath", str(self.folder), "--logpath", str(self.folder / "log"), "--logappend", "--nounixsocket"]
        command = [str(mongod.binary()), *where, "--bind_ip", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=2).close()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
