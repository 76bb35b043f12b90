"""`curate status`: the contents of the index, and the commands to run next."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate import tables
from curate.data import SPLITS, STATUSES
from curate.index import rounds
from curate.index.dataset import Index
from curate.index.file_ledger import MISSING, QUARANTINED, Ledger
from curate.project import Project
from curate.select import build_pool
from curate.vectors.store import Vectors


def summarise(project: Project, known: Mapping[str, build_pool.PoolImage] | None = None) -> dict[str, Any]:
    """Numbers of images, as `curate status --json` prints them.

    Args:
        project: the project.
        known: its images by content id, where the caller has read them already.
    """
    index = Index(project)
    images = build_pool.index_images(index) if known is None else known
    summary = {
        "project": project.name,
        "samples": index.count(),
        "by_source": _counts(image.source for image in images.values()),
        "by_split": _counts((image.split for image in images.values()), SPLITS),
        "by_status": _counts((image.status for image in images.values()), STATUSES),
        "by_class": _by_class(project, images.values()),
        **_files(index),
        "conflicts": len(index.conflicts()),
        "embedded": bool(tables.listed(project.work / "vectors")),
        "round": _waiting(project),
    }
    steps = next_steps(_facts(project, index, images, summary))
    return summary | {"next": [{"command": step.command, "why": step.why} for step in steps]}


def _counts(values: Any, order: tuple[str, ...] = ()) -> dict[str, int]:
    """Count values, in the given order; images without a split count as `none`."""
    counts = Counter(value or "none" for value in values)
    known = [name for name in order if name in counts]
    return {name: counts[name] for name in [*known, *sorted(counts.keys() - set(known))]}


def _by_class(project: Project, images: Collection[build_pool.PoolImage]) -> dict[str, int]:
    counts = Counter(name for image in images for name in image.present)
    clean = sum(image.status == "labelled" and not image.present for image in images)
    names = [*project.class_names, *sorted(counts.keys() - set(project.class_names))]
    # A class may have the name `clean`; it is not the count of clean images.
    return {name: counts[name] for name in names} | {"(clean)" if "clean" in names else "clean": clean}


def _files(index: Index) -> dict[str, int]:
    with Ledger(index.project.work / "files.sqlite") as table:
        missing = len(table.seen(MISSING)) + index.count(missing=True)
        return {"quarantined": len(table.seen(QUARANTINED)), "missing": missing, "duplicates": table.duplicates()}


def _waiting(project: Project) -> str | None:
    """The name of the newest round, while it is neither pushed nor touched."""
    newest = rounds.latest(project.work)
    return newest.name if newest and not newest.touched else None


# --- what to run next -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusFacts:
    """Facts that the next step depends on; counts are of images.

    Args:
        project: the project's name for `--project`.
        images: images in the index.
        conflicts: exact copies with different labels, not resolved.
        classes: active classes.
        queued: images in the annotators' queue.
        without_vectors: images without vectors, which cannot be selected.
        round: the newest round, while it is not pushed; `picks` are its images.
        server: a Label Studio is set up, here or in the environment.
        pickable: images that `select` may choose from.
        trainable: labelled images of the train split.
        testable: labelled images of the test split.
        pulled: annotators have labelled images.
        model: there is a model; the rest is about the newest one.
        new_labels: images of the train split that were labelled since it was trained.
        evaluated, promoted: it was evaluated, promoted.
        unpredicted: images that `select` may choose from and that it has not predicted.
    """

    project: str
    images: int = 0
    conflicts: int = 0
    classes: int = 1
    queued: int = 0
    without_vectors: int = 0
    round: str | None = None
    picks: int = 0
    server: bool = True
    pickable: int = 0
    trainable: int = 0
    testable: int = 0
    pulled: bool = False
    model: bool = False
    new_labels: int = 0
    evaluated: bool = False
    promoted: bool = False
    unpredicted: int = 0


@dataclass(frozen=True)
class Step:
    """A command to run, and why."""

    command: str
    why: str


def next_steps(facts: StatusFacts) -> tuple[Step, ...]:
    """The command that helps most now; a second one where there is a choice."""
    return tuple(replace(step, command=f"{step.command} --project {facts.project}") for step in _steps(facts))


def _steps(facts: StatusFacts) -> tuple[Step, ...]:
    if not facts.images:
        return (Step("curate index", "no image is indexed yet"),)
    if facts.conflicts:
        return (Step("curate resolve", f"{_images(facts.conflicts)} whose copies have different labels"),)
    if not facts.classes:
        return (Step("curate classes add NAME", "no class yet: annotators would have nothing to mark"),)
    if facts.queued:
        return (Step("curate pull", f"{_images(facts.queued)} in the annotators' queue: fetch what is labelled"),)
    if facts.without_vectors:  # some may be unreadable for good: so the step after it is shown as well
        embed = Step("curate embed", f"{_images(facts.without_vectors)} without vectors, which select needs")
        return (embed, *_steps(replace(facts, without_vectors=0))[: facts.without_vectors < facts.images])
    if facts.round and facts.server:
        return (Step("curate push", f"{facts.round} waits: {_images(facts.picks)} for the annotators"),)
    if facts.round:
        return (Step("curate labelstudio up", f"{facts.round} waits: annotators label it there, after curate push"),)
    learning = _learning(facts)
    if not facts.pickable:
        return learning or (
            Step("curate app", "all images are labelled and learnt from: look at them, or index new ones"),
        )
    choosing = Step("curate select --budget 500", f"{_images(facts.pickable)} without a label")
    # Labels of an imported library are enough for a first round; labels of annotators are first learnt from.
    first_round = not facts.model and not facts.pulled
    return (choosing, *learning[:1]) if first_round else (*learning[:1], choosing)


def _learning(facts: StatusFacts) -> tuple[Step, ...]:
    """Steps from labels to a model in use."""
    if not facts.trainable:
        return ()
    if not facts.model:
        simulate = Step("curate simulate", "whether selection would beat random on these labels")
        return (Step("curate train", f"{_images(facts.trainable)} labelled, and no model yet"), simulate)
    if facts.new_labels:
        return (Step("curate train", f"{_images(facts.new_labels)} labelled since the newest model was trained"),)
    if facts.testable and not facts.evaluated:
        return (Step("curate evaluate --model candidate", "the newest model has not been evaluated yet"),)
    if facts.testable and not facts.promoted:
        return (Step("curate models promote", "the newest model is evaluated, but not the one in use"),)
    if facts.unpredicted:
        why = f"{_images(facts.unpredicted)} without predictions of the newest model, which select uses"
        return (Step("curate predict --model candidate", why),)
    return ()


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _facts(
    project: Project, index: Index, images: Mapping[str, build_pool.PoolImage], summary: Mapping[str, Any]
) -> StatusFacts:
    vectors, newest = tables.latest(project.work / "vectors"), rounds.latest(project.work)
    with_vectors = set(Vectors(vectors).ids()) if vectors else set()
    real = {id: image for id, image in images.items() if image.source != "synthetic" and not image.missing}
    labelled = Counter(image.split for image in real.values() if image.status == "labelled")
    pickable = {id for id, image in real.items() if image.ineligible is None}
    return StatusFacts(
        project=project.name,
        images=summary["samples"],
        conflicts=summary["conflicts"],
        classes=len(project.active_classes),
        queued=summary["by_status"].get("queued", 0),
        without_vectors=len(real.keys() - with_vectors),
        round=summary["round"],
        picks=len(newest.picks()) if newest and summary["round"] else 0,
        server=bool(os.environ.get("LABEL_STUDIO_URL")) or (project.work / "labelstudio").is_dir(),
        pickable=len(pickable),
        trainable=labelled["train"],
        testable=labelled["test"],
        pulled="label-studio" in index.tally("label_origin"),
        **_about_model(project.work, index, set(real), pickable),
    )


def _about_model(work: Path, index: Index, real: set[str], pickable: set[str]) -> dict[str, Any]:
    """Facts about the newest model, by the files that training writes; empty where there is none."""
    key = build_pool.model_named(work, "candidate")
    manifest = _read(work / "models" / str(key) / "manifest.json")
    if not key or not manifest:
        return {}
    trained_at, scores = str(manifest.get("made", "")), work / "scores" / f"model-{key}.lance"
    rows = index.rows("status", "split", "labelled_at")
    predicted = set(tables.Table(scores).ids()) if tables.Table.exists(scores) else set()
    return {
        "model": True,
        "new_labels": sum(
            id in real and (status, split) == ("labelled", "train") and str(at or "") > trained_at
            for id, status, split, at in rows
        ),
        "evaluated": any((work / "evaluations" / key).glob("[!.]*/manifest.json")),
        "promoted": build_pool.model_named(work, "production") == key,
        "unpredicted": len(pickable - predicted),
    }


def _read(file: Path) -> dict[str, Any]:
    """The file's object; empty where it is missing or damaged, which `curate models` reports."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
