"""A Label Studio of the project's own, for a machine or a team that has none.

It lives in `work/labelstudio/server/`, listens on this machine only, and serves the images that `curate push` put into
`work/labelstudio/files/`. `curate labelstudio up` starts it and leaves it running; every other command finds it through
`server.json`. First user, password and token are made here and stand in `credentials.json`, which only its owner may
read; the server gets them through its environment, never as arguments. No credential is sent before the listening
socket is known to belong to the process that we started: another program may have taken the port.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from curate import files
from curate.errors import CurateError
from curate.project import Project

Progress = Callable[[str, int, int], None]

LOOPBACK = "127.0.0.1"
EMAIL = "curate@localhost"
FIRST_PORT = 8080
START_SECONDS = 900  # the first start migrates the database: 20 s on a quiet machine, many minutes on a busy one
STOP_SECONDS = 15
STARTING = "starting Label Studio"
WAITING = "another command starts or stops a Label Studio"
# Run by Label Studio's own interpreter in its own environment.
MEND = """
import os, sys, django, label_studio
sys.path.insert(0, os.path.dirname(label_studio.__file__))
os.environ["DJANGO_SETTINGS_MODULE"] = "label_studio.core.settings.label_studio"
django.setup()
from rest_framework.authtoken.models import Token
from users.models import User
user = User.objects.get(email=os.environ["LABEL_STUDIO_USERNAME"])
user.set_password(os.environ["LABEL_STUDIO_PASSWORD"])
user.save()
Token.objects.filter(user=user).delete()
Token.objects.create(user=user, key=os.environ["LABEL_STUDIO_USER_TOKEN"])
settings = user.active_organization.jwt
settings.legacy_api_tokens_enabled = True
settings.save()
"""

# What the server may see of our environment: Label Studio reads plain names such as HOST, PORT, DEBUG and SECRET_KEY,
# which other programs set for themselves, and no secret of ours is its business.
KEPT = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"})
KEPT_PREFIXES = ("LABEL_STUDIO_", "LC_", "PYTHON")
OURS = frozenset({"LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"})  # they tell our commands which server to talk to

# Webhooks and ML backends on this machine or in its network are wanted, hence not the default list, which bans those.
# Still banned: the metadata services of clouds, and addresses that only disguise another.
BANNED = "0.0.0.0/8,169.254.0.0/16,100.100.100.200/32,224.0.0.0/4,240.0.0.0/4,::/128,::ffff:0:0/96,::ffff:0:0:0/96,"
BANNED += "64:ff9b::/96,64:ff9b:1::/48,2001::/32,2002::/16,fd00:ec2::/32,fe80::/10,ff00::/8"

SETTINGS = {
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "DEBUG": "false",
    "HOST": "",
    "DJANGO_DB": "sqlite",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "ENABLE_LEGACY_API_TOKEN": "true",  # the only kind of token that can be made before there is a server
    "CORS_ALLOW_ALL_ORIGINS": "false",
    "USE_DEFAULT_BANNED_SUBNETS": "false",
    "USER_ADDITIONAL_BANNED_SUBNETS": BANNED,
    "LOCAL_FILES_SERVING_ENABLED": "true",
}


@dataclass(frozen=True)
class RunningServer:
    """A server that runs. `started`: by this call."""

    url: str
    host: str
    port: int
    pid: int
    folder: Path
    files: Path
    started: bool = False

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials.json"

    @property
    def log(self) -> Path:
        return self.folder / "label-studio.log"


@dataclass(frozen=True, repr=False)
class Credentials:
    """The first user's. No repr: they must not get into a log."""

    email: str
    password: str
    token: str


def no_progress(stage: str, done: int, total: int) -> None:
    pass


# --- for a project ----------------------------------------------------------------------------------------------------


def folder_of(project: Project) -> Path:
    return project.work / "labelstudio" / "server"


def files_of(project: Project) -> Path:
    return project.work / "labelstudio" / "files"


def up(
    project: Project, port: int | None = None, host: str = LOOPBACK, progress: Progress = no_progress
) -> RunningServer:
    """The project's server, started if it does not run. A server that runs is left as it is."""
    remove_links(files_of(project))
    return launch(folder_of(project), files_of(project), port, host, progress)


def down(project: Project) -> bool:
    """End the project's server; True if one ran."""
    return stop(folder_of(project))


def find(project: Project) -> RunningServer | None:
    """The project's server, if it runs."""
    return running(folder_of(project))


def remove_links(root: Path) -> None:
    """Remove the links to whole sources that earlier versions made in a document root: Label Studio follows links."""
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_symlink():
            path.unlink()


# --- for any folder ---------------------------------------------------------------------------------------------------


def launch(
    folder: Path, root: Path, port: int | None = None, host: str = LOOPBACK, progress: Progress = no_progress
) -> RunningServer:
    """The server on `folder` that serves the files below `root`, started if none runs; returns once it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    root.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / ".start", progress):
        existing = _known(folder) or _unrecorded(folder)
        if existing:  # perhaps still starting: whoever started it may have been killed
            return _settled(existing, _size(existing.log), _make_credentials(folder), progress)
        with _exclusive(_machine_lock(), progress):  # a server takes its port long after that was seen to be free
            return _start(folder, root, port, host, progress)


def running(folder: Path) -> RunningServer | None:
    """The server on `folder`, if its own process listens on its port and answers."""
    existing = _known(folder)
    return existing if existing and existing.port in _ports(existing.pid) and _healthy(existing.url) else None


def stop(folder: Path) -> bool:
    """End the server on `folder`; True if one ran. It has seconds to end by itself."""
    if not folder.is_dir():
        return False
    with _exclusive(folder / ".start", no_progress):
        existing = _known(folder) or _unrecorded(folder)
        if existing:
            _end(existing.pid)
        (folder / "server.json").unlink(missing_ok=True)
    return existing is not None


def read_credentials(folder: Path) -> Credentials:
    path = folder / "credentials.json"
    try:
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        remedy = "Run: curate labelstudio down, remove the file, then: curate labelstudio up"
        raise CurateError(f"cannot read the log-in of the project's Label Studio in {path}. {remedy}") from None


def executable() -> Path:
    """The `label-studio` beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).parent / "label-studio"
    path = str(beside) if os.access(beside, os.X_OK) else shutil.which("label-studio")
    if not path:
        remedy = "Run: pip install 'steel-curate[labelstudio]'. Or set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
        raise CurateError(f"Label Studio's server is not installed here. {remedy} to use one that runs elsewhere")
    return Path(path)


# --- starting ---------------------------------------------------------------------------------------------------------


def _start(folder: Path, root: Path, port: int | None, host: str, progress: Progress) -> RunningServer:
    program = executable()
    chosen = _free_port(host, port)
    known = _make_credentials(folder)
    served = RunningServer(_url(host, chosen), host, chosen, 0, folder, root.resolve(), started=True)
    begun = _trimmed(served.log)
    command = [str(program), "start", "--no-browser", "--internal-host", host, "--port", str(chosen)]
    with open(os.open(served.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(folder, root, known),
            start_new_session=True,
        )
    try:
        return _settled(_recorded(served, process.pid), begun, known, progress)
    except BaseException:  # Ctrl-C, too: nobody would know of a server that was left behind
        _end(process.pid)
        (folder / "server.json").unlink(missing_ok=True)
        raise


def _recorded(served: RunningServer, pid: int) -> RunningServer:
    state = {"pid": pid, "born": _born(pid), "port": served.port, "host": served.host, "files": str(served.files)}
    files.write_json(served.folder / "server.json", state)
    return replace(served, pid=pid)


def _settled(served: RunningServer, begun: int, known: Credentials, progress: Progress) -> RunningServer:
    _await(served, begun, progress)
    if not _accepts(served.url, known.token):
        _mend(served, known)
    return served


def _await(served: RunningServer, begun: int, progress: Progress) -> None:
    deadline = time.monotonic() + START_SECONDS
    tick = 0.0
    while time.monotonic() < deadline:
        if not _lives(served.pid):
            raise CurateError(f"Label Studio ended while it started: {_last_error(served.log, begun)}")
        ports = _ports(served.pid)
        if ports and served.port not in ports:  # Label Studio goes to the next port by itself where its own is taken
            raise CurateError(f"another program took port {served.port} at that moment. Run the command again")
        if ports and _healthy(served.url):  # it listens once its migrations are done, and not before
            return
        if time.monotonic() - tick >= 1:
            tick = time.monotonic()
            progress(STARTING, 1, 0)
        time.sleep(0.2)
    remedy = f"See {served.log}; end it by: curate labelstudio down"
    raise CurateError(f"Label Studio did not answer at {served.url} within {START_SECONDS} s. {remedy}")


def _environment(folder: Path, root: Path, known: Credentials) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if (k in KEPT or k.startswith(KEPT_PREFIXES)) and k not in OURS}
    ours = SETTINGS | {
        "BASE_DATA_DIR": str(folder.resolve()),
        "DATABASE_NAME": str(folder.resolve() / "label_studio.sqlite3"),
        "LOCAL_FILES_DOCUMENT_ROOT": str(root.resolve()),
        "USERNAME": known.email,
        "PASSWORD": known.password,
        "USER_TOKEN": known.token,
    }
    # Label Studio publishes the last commit of whatever repository its package lies in, and writes it into the package.
    return kept | {f"LABEL_STUDIO_{name}": value for name, value in ours.items()} | {"GIT_DIR": os.devnull}


def _make_credentials(folder: Path) -> Credentials:
    path = folder / "credentials.json"
    if path.exists():
        path.chmod(0o600)
        return read_credentials(folder)
    credentials = Credentials(EMAIL, secrets.token_urlsafe(16), secrets.token_hex(20))
    aside = path.with_suffix(".part")
    aside.unlink(missing_ok=True)
    with files.explain_full_disk(path):
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            json.dump(asdict(credentials), handle, indent=2)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    return credentials


def _mend(served: RunningServer, known: Credentials) -> None:
    """The server knows another token: a first start was cut short, the token was reset, or our file was lost."""
    environment = _environment(served.folder, served.files, known)
    python = executable().parent / "python"
    command = [str(python) if python.exists() else sys.executable, "-c", MEND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=served.folder)
    if done.returncode or not _accepts(served.url, known.token):
        reason = _plain((done.stderr.strip().splitlines() or ["no reason given"])[-1], known)
        raise CurateError(
            f"Label Studio refuses the token in {served.credentials}, which could not be mended: {reason}"
        )


def _plain(text: str, known: Credentials) -> str:
    return text.replace(known.token, "...").replace(known.password, "...")[:200]


def _trimmed(log: Path) -> int:
    """The log's size, after it was begun anew where it had grown long."""
    if _size(log) > 20_000_000:
        log.unlink()
    return _size(log)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _log_text(log: Path, begun: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as handle:
        handle.seek(begun)
        return handle.read(1_000_000).decode("utf-8", "replace")


def _last_error(log: Path, begun: int) -> str:
    lines = [line.strip() for line in _log_text(log, begun).splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    reason = (telling or lines or ["it left no message"])[-1]
    known = read_credentials(log.parent)
    return f"{_plain(reason, known)} (see {log})"


# --- ports ------------------------------------------------------------------------------------------------------------


def _free_port(host: str, wanted: int | None) -> int:
    if wanted is not None:
        problem = _obstacle(host, wanted)
        if problem:
            raise CurateError(f"cannot listen on {host}:{wanted}: {problem}. Give another --port, or none")
        return wanted
    problem = ""
    for port in range(FIRST_PORT, FIRST_PORT + 200):
        problem = _obstacle(host, port)
        if not problem:
            return port
    raise CurateError(f"no port from {FIRST_PORT} on is free on {host}: {problem}. Check --host, or give a --port")


def any_port() -> int:
    """One that is free now, far from those that people choose."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _obstacle(host: str, port: int) -> str:
    """Why a server cannot listen there. Label Studio itself also avoids ports that answer on localhost."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: old connections do not count
            probe.bind((host, port))
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "another program answers there" if _answers(port) else ""


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=2):
        return True
    return False


def _url(host: str, port: int) -> str:
    return f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"  # noqa: S104


def _healthy(url: str) -> bool:
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200
    return False


def _accepts(url: str, token: str) -> bool:
    import httpx

    headers = {"Authorization": f"Token {token}"}
    try:
        answer = httpx.get(f"{url}/api/current-user/whoami", headers=headers, timeout=60, trust_env=False)
    except httpx.HTTPError as error:
        message = f"Label Studio at {url} listens, but gave no answer ({type(error).__name__})"
        raise CurateError(f"{message}. Is the machine busy? Run the command again") from None
    return answer.status_code == 200


def _ports(pid: int) -> set[int]:
    """The ports on which this process listens: what answers there is no other program."""
    import psutil

    with contextlib.suppress(psutil.Error):
        sockets = psutil.Process(pid).net_connections("tcp")
        return {sock.laddr.port for sock in sockets if sock.status == psutil.CONN_LISTEN}
    return set()


# --- processes --------------------------------------------------------------------------------------------------------


def _state(folder: Path) -> dict[str, Any] | None:
    """Read `server.json`; None unless that very process still lives: pids are used again."""
    try:
        state: dict[str, Any] = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        same = _lives(state["pid"]) and _born(state["pid"]) == state["born"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if same else None


def _known(folder: Path) -> RunningServer | None:
    """The process that `server.json` names, whether it answers yet or not."""
    state = _state(folder)
    if state is None:
        return None
    host, port = state["host"], state["port"]
    return RunningServer(_url(host, port), host, port, state["pid"], folder, Path(state["files"]))


def _unrecorded(folder: Path) -> RunningServer | None:
    """A server on `folder` that `server.json` does not name: the command that started it was killed, or the file lost.

    Two servers must never share a database, so it is recorded and used like any other. The caller holds the lock.
    """
    import psutil

    wanted = str(folder.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            arguments, variables = process.cmdline(), process.environ()
            if variables.get("LABEL_STUDIO_BASE_DATA_DIR") == wanted and {"--internal-host", "--port"} <= {*arguments}:
                host, port = (arguments[arguments.index(name) + 1] for name in ("--internal-host", "--port"))
                root = Path(variables["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"])
                return _recorded(RunningServer(_url(host, int(port)), host, int(port), 0, folder, root), process.pid)
    return None


def _born(pid: int) -> str:
    """When the process began, in the kernel's own clock; nothing where there is no /proc."""
    if not Path("/proc").is_dir():
        return ""
    return _stat(pid)[19]


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()


def _lives(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # one that we started leaves a zombie
    try:
        os.kill(pid, 0)
        return not Path("/proc").is_dir() or _stat(pid)[0] != "Z"
    except (OSError, IndexError):
        return False


def _end(pid: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5)):
        with contextlib.suppress(ProcessLookupError):
            leads = os.getpgid(pid) == pid  # its group: whatever it started ends with it
            os.killpg(pid, number) if leads else os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while _lives(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not _lives(pid):
            return


@contextlib.contextmanager
def _exclusive(lock: Path, progress: Progress) -> Iterator[None]:
    """Two commands that start at once must not both launch a server."""
    with open(lock, "w", encoding="utf-8") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(WAITING, 1, 0)
                time.sleep(1)
        yield


def _machine_lock() -> Path:
    """Held by whoever starts a server, of any project of this user."""
    folder = files.cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "labelstudio.lock"


def installed() -> bool:
    return importlib.util.find_spec("label_studio") is not None
