"""The FiftyOne App as a curator finds it: fixed colours, a sidebar that makes sense, saved views, and `curate app`."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from typing import Any, NamedTuple
from urllib.parse import quote

from curate import rounds
from curate.data import SOURCES
from curate.errors import CurateError, unknown
from curate.index import Index
from curate.project import Project

SIDEBAR = {
    "labels": ("defects", "classes", "other_defects", "versions"),
    "state": ("status", "status_reason", "split", "source", "stratum", "group", "folds", "missing"),
    "selection": ("round", "slot", "pick_rank", "pick_score", "pick_reason"),
    "near-duplicates": ("near_cluster", "near_of", "near_similarity", "near_splits"),
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
LONGEST = 1000  # of a view's name; FiftyOne refuses what is longer than 1551


class SavedView(NamedTuple):
    """A saved view that we keep."""

    name: str
    view: Any
    shows: str
    color: str | None = None


class Served(NamedTuple):
    """The App, up and waiting."""

    url: str
    dataset: str
    view: str | None


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


def wanted_views(index: Index) -> Iterator[SavedView]:
    dataset, field = index.dataset, index.fo.ViewField
    for name, color in index.project.colors.items():
        yield SavedView(f"class {name}", dataset.match(_shows(field, name)), f"images that show {name}", color)
    clean = (field("status") == "labelled") & (_length(field, "defects.detections") == 0)
    clean &= _length(field, "classes.classifications") == 0
    yield SavedView("clean", dataset.match(clean), "labelled, no defects")
    yield SavedView("unlabelled", dataset.match(field("status") == "unlabelled"), "nobody has labelled these")
    yield SavedView("conflicts", index.undecided(), "copies with different labels")
    yield SavedView("disputed", dataset.match(field("status") == "disputed"), "not trained on until somebody decides")
    yield SavedView("missing", dataset.match(field("missing") == True), "files no longer on disk")  # noqa: E712
    for name in rounds.names(index):
        view = dataset.match_tags(name).sort_by("pick_rank")
        yield SavedView(name, view, f"chosen in {name}, in the order of the queue")
    if dataset.get_field("near_cluster") is not None:
        near = dataset.match(field("near_cluster") != None).sort_by("near_cluster")  # noqa: E711
        yield SavedView("near-duplicates", near, "cluster by cluster; near_of names the image to keep")
        crossing = near.match(field("near_splits") != None)  # noqa: E711
        yield SavedView("near-duplicates across splits", crossing, "what one split learns, another tests")
    for name in SOURCES:
        if index.count(source=name):
            yield SavedView(f"source {name}", dataset.match(field("source") == name), f"{name} images")
    for name in index.tally("stratum"):
        yield SavedView(f"stratum {name}", dataset.match(field("stratum") == field.literal(name)), f"images of {name}")


def _shows(field: Any, name: str) -> Any:
    wanted = field.literal([name])  # MongoDB would take "$x" for a field
    return field("defects.detections.label").contains(wanted) | field("classes.classifications.label").contains(wanted)


def _length(field: Any, path: str) -> Any:
    return field(path).length()


def _views(index: Index) -> None:
    """Ours are made anew. What users made keeps its name and address, even where ours would like to have it."""
    dataset, slug = index.dataset, index.fo.core.utils.to_slug
    names = set(dataset.list_saved_views())
    ours = {name for name in names if (dataset.get_saved_view_info(name)["description"] or "").startswith(OURS)}
    wanted = list(_told_apart(wanted_views(index), {slug(name) for name in names - ours}, slug))
    for name in ours - {saved.name for saved in wanted}:
        dataset.delete_saved_view(name)
    for saved in wanted:
        text = OURS + saved.shows
        dataset.save_view(saved.name, saved.view, description=text, color=saved.color, overwrite=True)


def _told_apart(views: Iterable[SavedView], taken: set[str], slug: Callable[[str], str]) -> Iterator[SavedView]:
    """FiftyOne knows a view by its slug: "Rolled in" and "rolled-in" share one, and of 裂纹 nothing is left in it."""
    for saved in views:
        plain = saved.name[:LONGEST]
        names = chain([plain], (f"{plain} {number}" for number in count(2)))
        name = next(name for name in names if slug(name) not in taken)
        taken.add(slug(name))
        yield saved._replace(name=name)


# --- curate app -----------------------------------------------------------------------------------------------------


def launch(
    project: Project,
    port: int,
    address: str,
    remote: bool,
    view: str | None,
    ready: Callable[[Served], None],
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
    name = index.dataset.name
    ready(Served(f"http://{address}:{port}/datasets/{quote(name)}", name, view))
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
