"""The FiftyOne App as a curator finds it: fixed colours, a sidebar that makes sense, saved views, and `curate app`."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from curate.data import SOURCES
from curate.errors import CurateError, unknown
from curate.index import Index
from curate.labels import DUPLICATE_LABELS
from curate.project import Project

SIDEBAR = {
    "labels": ("defects", "classes", "other_defects", "versions"),
    "state": ("status", "status_reason", "split", "source", "stratum", "group", "folds", "missing"),
    "scores": (),
    "provenance": (
        *("label_origin", "labelled_by", "labelled_at", "format", "label_file", "label_line"),
        *("paths", "filepath", "content_id"),
    ),
    "metadata": tuple(f"metadata.{name}" for name in ("size_bytes", "mime_type", "num_channels", "width", "height")),
    # What no curator reads stands last and closed: the App would otherwise spread it over groups of its own.
    "bookkeeping": ("id", "created_at", "last_modified_at", "width", "height", "label_digest", "state_key"),
}
CLOSED = ("provenance", "metadata", "bookkeeping")
OURS = "by curate: "


def arrange(project: Project) -> None:
    """Colours, sidebar and saved views, as config and data want them today. Views that users made are left alone."""
    index = Index(project)
    _colors(index)
    _sidebar(index)
    _views(index)


def _colors(index: Index) -> None:
    values = [{"value": name, "color": color} for name, color in index.project.colors.items()]
    fields = [
        {"path": path, "colorByAttribute": "label", "valueColors": values, "fieldColor": "#9aa0a6"}
        for path in ("defects", "classes", "other_defects")
    ]
    config = index.dataset.app_config
    pool = [value["color"] for value in values] or ["#9aa0a6"]
    config.color_scheme = index.fo.ColorScheme(color_pool=pool, color_by="value", fields=fields, opacity=0.55)
    index.dataset.save()


def _sidebar(index: Index) -> None:
    """Our groups first; fields that later steps add (numbers) go to the scores."""
    dataset = index.dataset
    ours = {path for group in SIDEBAR.values() for path in group} | {"tags", "metadata"}
    scores = [name for name in dataset.get_field_schema() if name not in ours]
    groups = [index.fo.SidebarGroupDocument(name="tags", paths=[])]
    for name, fields in SIDEBAR.items():
        paths = [*fields, *(scores if name == "scores" else [])]
        known = [path for path in paths if dataset.get_field(path) is not None]
        expanded = name not in CLOSED and bool(known)
        groups.append(index.fo.SidebarGroupDocument(name=name, paths=known, expanded=expanded))
    dataset.app_config.sidebar_groups = groups
    dataset.save()


def wanted_views(index: Index) -> Iterator[tuple[str, Any, str]]:
    """(name, view, what it shows) of every saved view that we keep."""
    dataset, field = index.dataset, index.fo.ViewField
    for name in index.project.class_names:
        yield f"class {name}", dataset.match(_shows(field, name)), f"images that show {name}"
    clean = (field("status") == "labelled") & (_length(field, "defects.detections") == 0)
    clean &= _length(field, "classes.classifications") == 0
    yield "clean", dataset.match(clean), "labelled, no defects"
    yield "unlabelled", dataset.match(field("status") == "unlabelled"), "nobody has labelled these"
    yield "conflicts", dataset.match(field("status_reason") == DUPLICATE_LABELS), "copies with different labels"
    yield "disputed", dataset.match(field("status") == "disputed"), "not trained on until somebody decides"
    yield "missing", dataset.match(field("missing") == True), "files no longer on disk"  # noqa: E712
    for name in SOURCES:
        if index.count(source=name):
            yield f"source {name}", dataset.match(field("source") == name), f"{name} images"
    for name in index.tally("stratum"):
        yield f"stratum {name}", dataset.match(field("stratum") == name), f"images of {name}"


def _shows(field: Any, name: str) -> Any:
    return field("defects.detections.label").contains(name) | field("classes.classifications.label").contains(name)


def _length(field: Any, path: str) -> Any:
    return field(path).length()


def _views(index: Index) -> None:
    dataset, colors = index.dataset, index.project.colors
    wanted = {name: (view, text) for name, view, text in wanted_views(index)}
    for name in dataset.list_saved_views():
        described = dataset.get_saved_view_info(name)["description"] or ""
        if name not in wanted and described.startswith(OURS):
            dataset.delete_saved_view(name)
    for name, (view, text) in wanted.items():
        color = colors.get(name.removeprefix("class "))
        dataset.save_view(name, view, description=OURS + text, color=color, overwrite=True)


# --- curate app -----------------------------------------------------------------------------------------------------


def launch(
    project: Project,
    port: int,
    address: str,
    remote: bool,
    view: str | None,
    ready: Callable[[str], None],
    wait: Callable[[Any], None] = lambda session: session.wait(-1),
) -> None:
    """Serve the App until Ctrl-C."""
    index = Index(project)
    chosen = _chosen(index, view)
    _check_port(address, port)
    # FiftyOne prints its welcome on standard output, which is for results only.
    with contextlib.redirect_stdout(sys.stderr):
        session = index.fo.launch_app(chosen, port=port, address=address, remote=True, auto=False)
        if not remote:
            _open_browser(f"http://{address}:{port}")
    ready(f"FiftyOne App on [link]http://{address}:{port}/datasets/{index.dataset.name}[/link]  (Ctrl-C ends it)")
    if remote and address in ("127.0.0.1", "localhost"):
        ready(f"from another machine: ssh -N -L {port}:127.0.0.1:{port} USER@{socket.gethostname()}")
    try:
        wait(session)
    except KeyboardInterrupt:
        pass
    finally:
        session.close()


def _chosen(index: Index, view: str | None) -> Any:
    if view is None:
        return index.dataset
    if view not in index.dataset.list_saved_views():
        raise unknown("view", view, index.dataset.list_saved_views())
    return index.dataset.load_saved_view(view)


def _check_port(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise CurateError(f"port {port} on {address}: {error.strerror}. Choose another with --port") from None


def _open_browser(url: str) -> None:
    import webbrowser

    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(url)
