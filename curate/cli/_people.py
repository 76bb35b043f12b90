"""`labelstudio`: where people label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from curate.cli._common import (
    DeviceOption,
    JsonOption,
    ProjectOption,
    bars,
    device_named,
    emit,
    near,
    open_project,
    rows,
    say,
    warn,
)
from curate.errors import CurateError

if TYPE_CHECKING:
    from labeling.server import RunningServer

_labelstudio = typer.Typer(help="Run a Label Studio of the project's own, on this machine.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(_labelstudio, name="labelstudio")


@_labelstudio.command("up")
def labelstudio_up(
    project: ProjectOption = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on \\[default: 8080, else the next free one].")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.", metavar="ADDRESS")
    ] = "127.0.0.1",
    json: JsonOption = False,
) -> None:
    """Start it, and leave it running. The first start takes about a minute."""
    from labeling import client, images, server

    opened = open_project(project)
    with bars() as step:
        served = server.up(opened, port, host, step)
        try:
            if not client.external():
                images.renew(opened, client.connect(opened), step)
        except CurateError as error:  # the server is up nevertheless
            warn(f"tasks that an earlier version pushed show no image until the next curate push ({error})")
    _warn_about(served, port, host)
    if client.external():
        warn(
            f"{client.URL} is set: curate uses that server, not this one, until you unset {client.URL} and {client.KEY}"
        )
    known = server.read_credentials(served.folder)
    if json:
        emit({"url": served.url, "started": served.started, "pid": served.pid, "email": known.email} | _places(served))
        return
    say(served.url, "started" if served.started else "runs already:", "green")
    say(f"log in as {known.email}; the password stands in {near(served.credentials)}")
    say("curate push", "next:")


def _places(served: RunningServer) -> dict[str, str]:
    return {"credentials": str(served.credentials), "folder": str(served.folder), "log": str(served.log)}


def _warn_about(served: RunningServer, port: int | None, host: str) -> None:
    if not served.started and (port not in (None, served.port) or host not in ("127.0.0.1", served.host)):
        warn(f"it listens on {served.host}:{served.port}; for another address: curate labelstudio down, then up again")
    if served.host not in ("127.0.0.1", "localhost"):
        text = "every machine that reaches this one can try to log in, and passwords and images cross the network "
        warn(text + "unencrypted. Put a proxy with TLS before it, or reach it by: ssh -L")


@_labelstudio.command("down")
def labelstudio_down(project: ProjectOption = None, json: JsonOption = False) -> None:
    """End it. All that people did stays, and is there again after the next up."""
    from labeling import server

    ran = server.down(open_project(project))
    emit({"stopped": ran}) if json else say("stopped" if ran else "it was not running", style="green")


@_labelstudio.command("status")
def labelstudio_status(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show which server the commands use, and whether it answers."""
    from labeling import client

    state = client.status(open_project(project))
    if json:
        emit(state)
        return
    rows((name.replace("_", " "), value) for name, value in state.items() if value is not None)


@_labelstudio.command("backend")
def labelstudio_backend(
    project: ProjectOption = None,
    model: Annotated[str | None, typer.Option(help=r"Key or alias \[default: production, else the newest].")] = None,
    device: DeviceOption = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 0,
    json: JsonOption = False,
) -> None:
    """Let the model suggest as soon as somebody opens a task, until Ctrl-C. Audit picks get no suggestion."""
    import threading

    from labeling import backend as backends
    from labeling import client, remote_project

    opened = open_project(project)
    studio = client.connect(opened)
    ls_project = remote_project.find(opened, studio)
    if ls_project is None:
        raise CurateError(f"nothing of project '{opened.name}' was pushed to {studio.url}. Run: curate push")
    backend = backends.opened(opened, model, device_named(device))
    with backends.served(backend, host, port) as (url, password), backends.connected(ls_project, url, password):
        state = {"url": url, "model": backend.predictor.key, "project": ls_project.url}
        emit(state) if json else say(
            f"{ls_project.url} from {url} with {backend.version}; Ctrl-C ends it", "serving", "green"
        )
        threading.Event().wait()
