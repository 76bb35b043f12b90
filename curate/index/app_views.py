"""The FiftyOne App for curators: a fixed colour a class, an ordered sidebar, saved views, and `curate app`."""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from curate.data import SOURCES
from curate.errors import CurateError, unknown
from curate.index import app_plugins, app_server, database, documents, evaluation_runs, rounds, synthetic, unusual
from curate.index.dataset import Index
from curate.index.predictions import CLASSES, DEFECTS
from curate.project import ENV_PROJECT, Project

SIDEBAR = {
    "labels": ("defects", "classes", "other_defects", "versions"),
    "predictions": ("predictions", "predicted_classes", "predicted_by", unusual.REGION),
    "state": ("status", "status_reason", "split", "source", "stratum", "group", "folds", "missing"),
    "selection": ("round", "slot", "pick_rank", "pick_score", "pick_reason"),
    "near-duplicates": ("near_cluster", "near_of", "near_similarity", "near_splits"),
    "scores": (),
    "evaluations": (),
    "provenance": (
        *("label_origin", "labelled_by", "labelled_at", "lead_time", "annotation_origin", "annotation", "label_config"),
        *("format", "label_file", "label_line"),
        *("paths", "filepath", "content_id"),
    ),
    "metadata": tuple(f"metadata.{name}" for name in ("size_bytes", "mime_type", "num_channels", "width", "height")),
    # Fields that no curator reads come last and closed: the App would otherwise show them in groups of its own.
    "bookkeeping": ("id", "created_at", "last_modified_at", "width", "height", "label_digest", "state_key"),
}
CLOSED = ("evaluations", "provenance", "metadata", "bookkeeping")
# Fields that `curate evaluate` writes for the model that was evaluated last.
MISTAKES = ("eval_missed", "eval_false_alarm", "eval_confidence", "eval_missed_sizes", "eval_dice", "mistakenness")
CHANGED = ("eval_fixed", "eval_broken")  # against the model that was evaluated before it
CONFIDENT = "confident mistakes"
MOST_CONFIDENT = 20
START_SECONDS = 300
OURS = "by curate: "
LONGEST = 1000  # characters of a view's name; FiftyOne refuses more than 1551


class SavedView(NamedTuple):
    """A saved view of curate's own."""

    name: str
    view: Any
    description: str
    color: str | None = None


class ServedApp(NamedTuple):
    """The running App: its address, the saved view that it opens, and the number of images shown and in all."""

    url: str
    dataset: str
    view: str | None
    shown: int
    images: int


def arrange(project: Project) -> None:
    """Bring colours, sidebar and saved views up to date with config and data. Users' own views are left alone."""
    index = Index(project)
    _set_colors(index)
    _set_sidebar(index)
    _save_views(index)


def _set_colors(index: Index) -> None:
    """Give each class one colour everywhere, and predictions of it a paler one, to tell them from labels."""
    values = [{"value": name, "color": color} for name, color in index.project.colors.items()]
    paler = [{"value": name, "color": paler_color(color)} for name, color in index.project.colors.items()]
    fields = [
        {"path": path, "colorByAttribute": "label", "valueColors": colors, "fieldColor": "#9aa0a6"}
        for paths, colors in ((("defects", "classes", "other_defects"), values), ((DEFECTS, CLASSES), paler))
        for path in paths
    ]
    nameless = [{"value": "None", "color": unusual.COLOR}]  # by which the App finds what has no label
    fields.append(
        {"path": unusual.REGION, "colorByAttribute": "label", "valueColors": nameless} | {"fieldColor": unusual.COLOR}
    )
    config = index.dataset.app_config
    pool = [value["color"] for value in values] or ["#9aa0a6"]
    config.color_scheme = index.fo.ColorScheme(color_pool=pool, color_by="value", fields=fields, opacity=0.55)
    index.dataset.save()


def paler_color(color: str) -> str:
    """Return the colour half way to white."""
    return "#" + "".join(f"{(int(color[at : at + 2], 16) + 255) // 2:02x}" for at in (1, 3, 5))


def _set_sidebar(index: Index) -> None:
    """Show curate's groups first; number fields that later steps add go to the scores."""
    dataset = index.dataset
    ours = {path for group in SIDEBAR.values() for path in group} | {"tags", "metadata"}
    others = [name for name in dataset.get_field_schema() if name not in ours]
    evaluated = evaluation_runs.fields(index, others)
    more = {"scores": [name for name in others if name not in evaluated], "evaluations": evaluated}
    groups = [index.fo.SidebarGroupDocument(name="tags", paths=[])]
    for name, fields in SIDEBAR.items():
        paths = [*fields, *more.get(name, [])]
        known = [path for path in paths if dataset.get_field(path) is not None]
        expanded = name not in CLOSED and bool(known)
        groups.append(index.fo.SidebarGroupDocument(name=name, paths=known, expanded=expanded))
    dataset.app_config.sidebar_groups = groups
    dataset.save()


def views_to_save(index: Index) -> Iterator[SavedView]:
    """Yield curate's saved views, as config and data want them today."""
    dataset, field = index.dataset, index.fo.ViewField
    for name, color in index.project.colors.items():
        yield SavedView(f"class {name}", dataset.match(_has_class(field, name)), f"images that show {name}", color)
    clean = (field("status") == "labelled") & (_count(field, "defects.detections") == 0)
    clean &= _count(field, "classes.classifications") == 0
    yield SavedView("clean", dataset.match(clean), "labelled, no defects")
    yield SavedView("unlabelled", dataset.match(field("status") == "unlabelled"), "not labelled yet")
    yield SavedView("conflicts", index.undecided(), "copies with different labels")
    yield SavedView("disputed", dataset.match(field("status") == "disputed"), "not trained on until somebody decides")
    edited = dataset.match(field("status_reason") == "edited-in-app")
    yield SavedView("edited in app", edited, "other_defects shows the label of Label Studio")
    split = dataset.match(field("status_reason").starts_with("annotators-disagree"))
    yield SavedView("annotators disagree", split, "other_defects shows who drew what")
    yield SavedView("queued", dataset.match(field("status") == "queued"), "waiting in the annotators' queue")
    yield SavedView("skipped", dataset.match(field("status") == "skipped"), "status_reason says why")
    yield SavedView("missing", dataset.match(field("missing") == True), "files no longer on disk")  # noqa: E712
    for name in rounds.names(index):
        view = dataset.match_tags(name).sort_by("pick_rank")
        yield SavedView(name, view, f"chosen in {name}, in the order of the queue")
    for name in synthetic.tags(index):
        yield SavedView(name, dataset.match_tags(name), "one batch of synthetic images")
    if dataset.get_field(unusual.PERCENT) is not None:
        open_ = dataset.exists(unusual.PERCENT).match(field("status") != "labelled")
        text = f"{unusual.PERCENT}: per cent of the windows that are less unusual; not labelled yet"
        yield SavedView(unusual.VIEW, open_.sort_by(unusual.PERCENT, reverse=True), text)
    if dataset.get_field("near_cluster") is not None:
        near = dataset.match(field("near_cluster") != None).sort_by("near_cluster")  # noqa: E711
        yield SavedView("near-duplicates", near, "cluster by cluster; near_of names the image to keep")
        crossing = near.match(field("near_splits") != None)  # noqa: E711
        yield SavedView("near-duplicates across splits", crossing, "one split trains on what another tests")
    if dataset.get_field("eval_missed") is not None:
        yield from _mistake_views(index)
    for name in SOURCES:
        if index.count(source=name):
            yield SavedView(f"source {name}", dataset.match(field("source") == name), f"{name} images")
    for name in index.tally("stratum"):
        yield SavedView(f"stratum {name}", dataset.match(field("stratum") == field.literal(name)), f"images of {name}")


def _mistake_views(index: Index) -> Iterator[SavedView]:
    """Yield views of where the model that was evaluated last contradicts the labels; empty views are left out."""
    dataset, field = index.dataset, index.fo.ViewField
    confident = dataset.match(field("eval_confidence") > 0).sort_by("eval_confidence", reverse=True)
    suspects = dataset.match(field("mistakenness") > 0.5).sort_by("mistakenness", reverse=True)
    views = [
        SavedView(CONFIDENT, confident.limit(MOST_CONFIDENT), "wrong with high confidence: the most confident first"),
        SavedView("label suspects", suspects, "the model contradicts the label: the most confident first"),
    ]
    for name, color in index.project.colors.items():
        missed = dataset.match(field("eval_missed").contains(field.literal([name])))
        views.append(SavedView(f"missed {name}", missed, f"labelled {name}, not found by the model", color))
    clean = (_count(field, "defects.detections") == 0) & (_count(field, "classes.classifications") == 0)
    alarms = dataset.match(clean & (_count(field, "eval_false_alarm") > 0))
    views.append(SavedView("false alarms on clean", alarms, "clean images in which the model finds defects"))
    for size in ("small", "medium", "large"):
        view = dataset.match(field("eval_missed_sizes").contains(size))
        views.append(SavedView(f"{size} misses", view, f"{size} defects that no predicted region covers"))
    for change in ("fixed", "broken"):
        view = dataset.match(_count(field, f"eval_{change}") > 0)
        views.append(SavedView(f"{change} since the last model", view, f"images that this model has {change}"))
    yield from (saved for saved in views if saved.view.limit(1).count("id"))


def _has_class(field: Any, name: str) -> Any:
    wanted = field.literal([name])  # MongoDB would take "$x" for a field
    return field("defects.detections.label").contains(wanted) | field("classes.classifications.label").contains(wanted)


def _count(field: Any, path: str) -> Any:
    return field(path).length()


def _save_views(index: Index) -> None:
    """Write curate's views where they differ. Users' views keep their names and addresses, even where ours clash.

    A view is written before the dataset refers to it, and deleted after the reference: an interruption never leaves a
    reference to a view that does not exist. (FiftyOne deletes and overwrites the other way round.)
    """
    from bson import ObjectId, json_util
    from pymongo import UpdateOne

    dataset, slug, db = index.dataset, index.fo.core.utils.to_slug, index.fo.core.odm.get_db_conn()
    dataset_id, now = dataset._doc.id, documents.database_now()
    referenced = db.datasets.find_one({"_id": dataset_id}, {"saved_views": 1}).get("saved_views") or []
    views = list(db.views.find({"_dataset_id": dataset_id}))
    ours = [view for view in views if str(view.get("description") or "").startswith(OURS)]
    taken = {slug(view["name"]) for view in views if view["_id"] in referenced and view not in ours}
    by_name, kept, changes = {view["name"]: view for view in ours}, [], []
    for saved in _with_unique_slugs(views_to_save(index), taken, slug):
        stages = [json_util.dumps(stage) for stage in saved.view._serialize(include_uuids=False)]
        wanted = {"description": OURS + saved.description, "color": saved.color, "view_stages": stages}
        before = by_name.get(saved.name, {"_id": ObjectId()})
        kept.append(before["_id"])
        if any(before.get(name) != value for name, value in wanted.items()):
            new = {"_dataset_id": dataset_id, "name": saved.name, "slug": slug(saved.name), "created_at": now}
            change = {"$set": {**wanted, "last_modified_at": now}, "$setOnInsert": new}
            changes.append(UpdateOne({"_id": before["_id"]}, change, upsert=True))
    if changes:
        db.views.bulk_write(changes)
    gone = [view["_id"] for view in ours if view["_id"] not in kept]
    if [id for id in referenced if id in {*kept, *gone}] != kept:
        # In one write: a view that somebody saves in the App at this moment is kept.
        old = {"input": {"$ifNull": ["$saved_views", []]}, "cond": {"$not": {"$in": ["$$this", kept + gone]}}}
        together = {"$concatArrays": [{"$filter": old}, kept]}
        db.datasets.update_one({"_id": dataset_id}, [{"$set": {"saved_views": together, "last_modified_at": now}}])
    if gone:
        db.views.delete_many({"_id": {"$in": gone}})
    dataset._doc.reload("saved_views")  # another process may have written what this one had read before


def _with_unique_slugs(views: Iterable[SavedView], taken: set[str], slug: Callable[[str], str]) -> Iterator[SavedView]:
    """Number the names whose slug, by which FiftyOne knows a view, is taken: "Rolled in" and "rolled-in" share one, and
    nothing of 裂纹 is left in it."""
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
    ready: Callable[[ServedApp], None],
    wait: Callable[[Any], None] = lambda session: session.wait(-1),
) -> None:
    """Serve the App until Ctrl-C, by a server that sends only images of the project's dataset (`app_server`)."""
    index = Index(project)
    view = view or first_view(index)
    chosen = _view_or_dataset(index, view)
    _check_port(address, port)
    name, token = index.dataset.name, "" if app_server.is_loopback(address) else secrets.token_urlsafe(24)
    url = f"http://{address}:{port}/datasets/{quote(name)}"
    plugins = app_plugins.linked(project.work / "plugins", index.fo.config.plugins_dir)
    settings = {database.URI: index.fo.config.database_uri, app_server.DATASET: name, app_server.TOKEN: token}
    settings |= {app_plugins.FOLDER: str(plugins), ENV_PROJECT: str(project.folder)}
    settings |= {database.OWN: "1"} if database.is_embedded() else {}
    # FiftyOne prints its welcome on standard output, which is for results only.
    with contextlib.redirect_stdout(sys.stderr), database.environment(settings):
        _replace_server(port, address, token)
        session = index.fo.launch_app(chosen, port=port, address=address, remote=True, auto=False)
    try:
        _check_restricted(f"http://{address}:{port}", token)
        if token:
            url += f"?token={token}"
        if not remote:
            _open_browser(url)
        ready(ServedApp(url, name, view, int(chosen.count("id")), index.count()))
        wait(session)
    except KeyboardInterrupt:
        pass
    finally:
        session._disable_wait_warning = True  # FiftyOne would print advice on standard output
        session.close()


def _replace_server(port: int, address: str, token: str) -> None:
    """Start our server in the place where FiftyOne's session looks for its own."""
    from fiftyone.core import service
    from fiftyone.core.session import client, session

    class RestrictedServer(service.ServerService):  # type: ignore[misc]
        working_dir = str(Path(__file__).parents[2])

        @property
        def command(self) -> list[str]:
            where = ["--port", str(self.port), "--address", self.address]
            return [sys.executable, "-m", app_server.__name__, *where]

        def _wait_for_child_port(self, port: int, timeout: int = START_SECONDS) -> Any:  # FiftyOne waits for 60 s
            return super()._wait_for_child_port(port, timeout)

    if token:  # FiftyOne's session is a client of the server, like a browser
        client.Client.origin = property(lambda client: f"http://curate:{token}@{client.address}:{client.port}")
    try:
        session._server_services[port] = RestrictedServer(port, address=address, do_not_track=True)
    except service.ServiceListenTimeout:
        raise CurateError(f"the App's server did not start on {address}:{port} in {START_SECONDS} s") from None


def _check_restricted(origin: str, token: str) -> None:
    """Check that the server refuses a file that is in no dataset: another version of FiftyOne may start its own."""
    import requests

    with requests.Session() as http:
        http.trust_env = False  # no proxy
        http.auth = ("curate", token)
        try:
            refused = http.get(f"{origin}/media", params={"filepath": __file__}, timeout=60).status_code == 403
        except requests.RequestException as error:
            raise CurateError(f"the App does not answer on {origin}: {type(error).__name__}") from None
    if refused:
        return
    danger = f"the App's server on {origin} sends any file of this machine to anybody who reaches it"
    if token:
        raise CurateError(f"{danger}; it was stopped. Leave out --address and reach it through ssh")
    sys.stderr.write(f"warning: {danger}: this version of FiftyOne cannot be restricted\n")


def first_view(index: Index) -> str | None:
    """Return the view that a curator should see first: the mistakes of the model that was evaluated last."""
    return CONFIDENT if CONFIDENT in index.dataset.list_saved_views() else None


def _view_or_dataset(index: Index, view: str | None) -> Any:
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
