"""The rare-defect desk in the App: what its forms offer, and where the project stands (the panel's numbers)."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curate import exports, files
from curate import project as projects
from curate.admin import status
from curate.audit import run as auditing
from curate.audit.estimates import Interval
from curate.data import SPLITS as SPLITS
from curate.errors import CurateError, unknown
from curate.files import ProjectBusy
from curate.index import rounds
from curate.index.dataset import Index
from curate.ops._lock import Progress, no_progress, writing
from curate.project import Project
from curate.select import build_pool
from curate.select.build_pool import PoolImage
from curate.strategies import CATALOGUE
from curate.vectors import layout

DEVICES, TASKS, HELD_OUT = ("auto", "cpu", "cuda"), ("segmentation", "classification"), ("test", "val")
METRICS = ("recall", "precision", "f1", "ap")
SHOWN = ("defects.detections.label", "classes.classifications.label")
LARGEST_PICTURE = 8 << 20  # bytes
PICKS = 12  # of a round, with their reasons


def prepare(project: Project, progress: Progress = no_progress) -> None:
    """Bring what the App's own panels show up to date, before it opens; left for later where a command is writing."""
    with contextlib.suppress(ProjectBusy), writing(project, "app", views=False):
        layout.show(Index(project), progress=progress)


# --- what forms offer -------------------------------------------------------------------------------------------------


def project_of(dataset: str) -> Project:
    """Return the project that `curate app` was started for; its index must be the dataset that the browser shows."""
    project = projects.load(projects.find(None))
    if project.dataset_name != dataset:
        raise CurateError(
            f"dataset '{dataset}' is not the index of project '{project.name}' ({project.dataset_name}): "
            "open that one, or start curate app on the other project"
        )
    return project


def strategies() -> list[str]:
    return CATALOGUE.names()


def recipes() -> list[str]:
    from train import recipe

    return sorted(recipe.names())


def formats() -> list[str]:
    return sorted({*exports.CATALOGUE.names(), "label_studio"})


def model_names(project: Project) -> list[str]:
    from train import store

    keys = [model.key for model in store.all_models(project)]
    return [name for name in (store.CANDIDATE, store.PRODUCTION) if store.alias(project, name) in keys] + keys


def no_studio(project: Project) -> str | None:
    """Return what is missing to talk to a Label Studio, with the remedy; None where nothing is."""
    if os.environ.get("LABEL_STUDIO_URL") or (project.work / "labelstudio").is_dir():
        return None
    return (
        not_installed(project) or f"no Label Studio is set up yet. Run: curate labelstudio up --project {project.name}"
    )


def not_installed(project: Project) -> str | None:
    """Return how to get Label Studio where it is not installed."""
    if importlib.util.find_spec("label_studio"):
        return None
    return "Label Studio is not installed. Run: pip install 'steel-curate[labelstudio]', or set LABEL_STUDIO_URL"


def content_ids(dataset: Any, samples: Sequence[str]) -> list[str]:
    """Return the content ids of samples, in their order; others, such as patches, are left out."""
    from bson import ObjectId

    known = [sample for sample in dict.fromkeys(samples) if ObjectId.is_valid(sample)]
    if not known:
        return []
    by_id = dict(zip(*dataset.select(known).values(["id", "content_id"]), strict=True))
    return [by_id[sample] for sample in known if by_id.get(sample)]


def box_of(dataset: Any, region: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """Return the box in pixels of a region that the App names by sample, field and label."""
    from bson import ObjectId

    if not ObjectId.is_valid(region.get("sample_id")) or str(region.get("field")) not in dataset.get_field_schema():
        return None
    view = dataset.select([region["sample_id"]])
    names = [f"{region['field']}.detections.{name}" for name in ("id", "bounding_box")]
    ids, boxes, width, height = (values[0] for values in view.values([*names, "width", "height"]))
    box = dict(zip(ids or (), boxes or (), strict=True)).get(region.get("label_id"))
    return (box[0] * width, box[1] * height, box[2] * width, box[3] * height) if box else None


def data_url(picture: Path) -> str:
    """Return a picture of ours as an address that a browser shows without asking for it."""
    return "data:image/png;base64," + base64.b64encode(files.read_bytes(picture, LARGEST_PICTURE)).decode()


# --- where the project stands -----------------------------------------------------------------------------------------


def overview(project: Project) -> dict[str, Any]:
    """Return what the panel shows, as JSON values; it is counted anew only where anything has changed since."""
    index = Index(project)
    state = _state(project, index)
    if _counted.get(project.folder, (None, {}))[0] != state:
        _counted[project.folder] = (state, _count(project, index))
    return _counted[project.folder][1]


_counted: dict[Path, tuple[Any, dict[str, Any]]] = {}


def _state(project: Project, index: Index) -> list[Any]:
    """Return what changes with any sample, round, model, evaluation, vector or setting; quick to read."""
    samples = index.dataset._sample_collection
    newest = next(iter(samples.find({}, {"last_modified_at": 1}).sort("last_modified_at", -1).limit(1)), None)
    patterns = (
        "rounds/*/*",
        "models/*",
        "models/*/*.json",
        "evaluations/*/*",
        "vectors/*/*",
        "scores/*/*",
        "labelstudio",
    )
    changed = sorted((str(path), path.stat().st_mtime_ns) for name in patterns for path in project.work.glob(name))
    return [str(newest), samples.estimated_document_count(), project.file.stat().st_mtime_ns, changed]


def _count(project: Project, index: Index) -> dict[str, Any]:
    """Count everything that the panel shows."""
    images = build_pool.index_images(index)
    summary = status.summarise(project, images)
    past = rounds.every(project.work)
    return {
        "project": project.name,
        "images": summary["samples"],
        "by_status": summary["by_status"],
        "next": summary["next"],
        "rounds": [_round(round_, images) for round_ in past],
        "classes": _classes(project, images),
        "discovery": _discovery(project, past, images),
        "audit": _audit(project),
        "models": _models(project),
    }


def _round(round_: rounds.Round, images: Mapping[str, PoolImage]) -> dict[str, Any]:
    picks = round_.picks()
    known = [images[row["id"]] for row in picks if row["id"] in images]
    results = Counter(_result(*_facts(image)) for image in known)
    reasons = [
        {"slot": row["slot"], "reason": row["reason"], "result": _result(*_facts(images[row["id"]]))}
        for row in picks
        if row["id"] in images
    ][:PICKS]  # the panel's state travels with every event
    about = {"name": round_.name, "number": round_.number, "strategy": round_.manifest.get("strategy")}
    about |= {"pushed": round_.pushed, "slots": dict(Counter(row["slot"] for row in picks))}
    return about | {"results": dict(results), "picks": reasons}


def _facts(image: PoolImage) -> tuple[str | None, bool]:
    return image.status, bool(image.present)


def _result(status: str | None, shows: bool) -> str:
    """Return what became of a pick."""
    if status == "labelled":
        return "found" if shows else "clean"
    return status if status in ("disputed", "skipped") else "waiting"


def picks_of(project: Project, name: str, key: str) -> list[str]:
    """Return the picks of a round with this slot or result, in their order; all of them for any other key."""
    round_ = next((round_ for round_ in rounds.every(project.work) if round_.name == name), None)
    if round_ is None:
        raise unknown("round", name, [round_.name for round_ in rounds.every(project.work)])
    picks = round_.picks()
    results = {
        document["content_id"]: _result(document.get("status"), _shows(document))
        for document in Index(project).documents([row["id"] for row in picks], ("content_id", "status", *SHOWN))
    }
    chosen = [row["id"] for row in picks if key in (row["slot"], results.get(row["id"]))]
    return chosen or [row["id"] for row in picks]


def _shows(document: Mapping[str, Any]) -> bool:
    """Return True if a sample's document has a label that names a class."""
    regions = (document.get("defects") or {}).get("detections")
    return bool(regions or (document.get("classes") or {}).get("classifications"))


def _classes(project: Project, images: Mapping[str, PoolImage]) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    groups: dict[str, set[str]] = {}
    for image in images.values():
        if image.status == "labelled" and image.source != "synthetic":
            for name in image.present:
                counts[name] += 1
                groups.setdefault(name, set()).add(image.group)
    names = project.active_classes
    colors = project.colors
    return [
        {"name": name, "color": colors.get(name), "images": counts[name], "groups": len(groups.get(name, ()))}
        for name in names
    ]


def _discovery(project: Project, past: Sequence[rounds.Round], images: Mapping[str, PoolImage]) -> dict[str, Any]:
    """Return how many groups of each class were known after each round; the first entry is before any."""
    turn: dict[str, int] = {}
    for place, round_ in enumerate(past, start=1):
        for row in round_.picks():
            turn.setdefault(row["id"], place)
    first: dict[str, dict[str, int]] = {name: {} for name in project.active_classes}
    for id, image in images.items():
        if image.status == "labelled" and image.source != "synthetic":
            for name in image.present & first.keys():
                at = turn.get(id, 0)
                first[name][image.group] = min(at, first[name].get(image.group, at))
    counts = {name: Counter(known.values()) for name, known in first.items()}
    steps = range(len(past) + 1)
    known = {name: [sum(count[at] for at in range(step + 1)) for step in steps] for name, count in counts.items()}
    return {"steps": ["start", *(round_.name for round_ in past)], "groups": known}


def _audit(project: Project) -> dict[str, Any]:
    """Return the audit's estimates, and how likely the next image shows a kind that no audit has seen."""
    try:
        facts = auditing.read(project)
        report = auditing.survey(facts, project.active_classes)
    except CurateError as error:
        return {"note": str(error), "classes": []}
    checked = auditing.check(facts)
    shown = [
        {"name": estimate.name or "any defect", "shown": estimate.shown}
        | {name: _interval(getattr(estimate, name)) for name in ("prevalence", "recall")}
        for estimate in report.estimates
    ]
    advice = {"verdict": checked.advice.verdict, "reasons": list(checked.advice.reasons)}
    return {"note": None, "labelled": report.labelled, "classes": shown} | advice


def _interval(interval: Interval | None) -> list[float] | None:
    """Return estimate and bounds, where they are narrow enough to be read."""
    if interval is None or not auditing.is_meaningful(interval):
        return None
    return [interval.estimate, interval.low, interval.high]


def _models(project: Project) -> dict[str, Any]:
    """Return the newest test metrics of candidate and production, and in words what differs."""
    from train import store

    named = {name: store.alias(project, name) for name in (store.CANDIDATE, store.PRODUCTION)}
    metrics = {name: _tested(project, key) for name, key in named.items() if key}
    production, candidate = metrics.get(store.PRODUCTION), metrics.get(store.CANDIDATE)
    return {"named": named, "metrics": metrics, "verdict": _verdict(named, candidate, production)}


def _tested(project: Project, key: str) -> dict[str, Any] | None:
    """Return the metrics of a model's newest evaluation on test, each with its bounds."""
    found = [file.parent for file in (project.work / "evaluations" / key).glob("test-*/manifest.json")]
    if not found:
        return None
    newest = max(found, key=lambda folder: str(files.read_json(folder / "manifest.json").get("made")))
    values = files.read_json(newest / "figures.json")
    shown = {
        "all classes": {"f1": values["overall"].get("macro_f1")},
        **values["classes"],
        **(values.get("strata") or {}),
    }
    return {
        "images": values["images"],
        "classes": {name: {key: _bounds(by_name.get(key)) for key in METRICS} for name, by_name in shown.items()},
        "strata": sorted(values.get("strata") or {}),
        "false_alarms": _bounds(values["overall"].get("clean_false_alarms")),
    }


def _bounds(metric: Mapping[str, Any] | None) -> list[float] | None:
    if not metric or metric.get("value") is None:
        return None
    return [metric["value"], metric["low"], metric["high"]]


def _verdict(
    named: Mapping[str, str | None], candidate: Mapping[str, Any] | None, production: Mapping[str, Any] | None
) -> list[str]:
    """Return in words what the candidate does better and worse where the intervals do not touch."""
    new, old = named["candidate"], named["production"]
    if new is None:
        return ["There is no model yet."]
    if candidate is None:
        return [f"The candidate {new} has not been evaluated on test yet."]
    if new == old:
        return [f"The candidate {new} is production's model."]
    if old is None or production is None:
        return [f"No evaluated model is in production; the candidate {new} would be the first."]
    lines = []
    for name, by_name in candidate["classes"].items():
        for metric in ("recall", "precision"):
            ours, theirs = by_name.get(metric), (production["classes"].get(name) or {}).get(metric)
            if ours and theirs and (ours[1] > theirs[2] or ours[2] < theirs[1]):
                word = "higher" if ours[1] > theirs[2] else "lower"
                lines.append(f"{name}: {word} {metric}, {ours[0]:.2f} against {theirs[0]:.2f}.")
    return lines or ["Nothing differs more than the intervals allow; curate compare looks at the same images pairwise."]
