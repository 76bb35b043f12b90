"""A round that is not pushed yet, edited by hand: images dropped from it, others pinned to its front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from curate.data import AUDIT
from curate.errors import CurateError
from curate.index import rounds
from curate.index.dataset import Index
from curate.index.rounds import Round
from curate.labels.log import user_name
from curate.ops._lock import writing
from curate.project import Project
from curate.select import build_pool

PINNED = "pinned"  # the slot of images that a person put into a round
Row = dict[str, Any]


def drop(project: Project, number: int | None, ids: Sequence[str]) -> Round:
    """Take images out of a round (None: the newest). They may be picked again by the next one.

    Audit picks stay: without those that somebody would rather not see, the estimates would be biased.
    """

    def edited(index: Index, before: list[Row]) -> list[Row]:
        _refuse_strangers(before, ids)
        if audit := [row["id"][:12] for row in before if row["id"] in ids and row["slot"] == AUDIT]:
            raise CurateError(
                f"{', '.join(audit)}: audit picks are drawn at random, and without one of them the audit would be "
                "biased. Leave them in; whoever labels them may skip them"
            )
        status = dict(index.rows("status"))
        if done := [id[:12] for id in ids if status.get(id) != "unlabelled"]:
            raise CurateError(f"{', '.join(done)}: no longer unlabelled, so it stays in the round that found it")
        return [row for row in before if row["id"] not in ids]

    return _edit(project, number, edited)


def pin(project: Project, number: int | None, ids: Sequence[str]) -> Round:
    """Put images first in a round (None: the newest), those that are not in it as picks of a person."""

    def edited(index: Index, before: list[Row]) -> list[Row]:
        known = {row["id"]: row for row in before}
        images, seconds = build_pool.index_images(index), [row["seconds"] for row in before]
        first = []
        for id in dict.fromkeys(ids):
            image = images.get(id)
            if image is None or (id not in known and image.ineligible):
                why = image.ineligible if image else "it is not in the index"
                raise CurateError(f"image {id[:12]} cannot be pinned: {why}")
            blank = dict.fromkeys(rounds.columns())
            blank |= {"id": id, "path": image.path, "slot": PINNED, "reason": f"pinned by {user_name()}", "tile": -1}
            blank |= {"group": image.group, "stratum": image.stratum or "", "score": 0.0, "extra": False}
            blank |= {"seconds": float(np.median(seconds)) if seconds else 0.0}
            first.append(known.get(id) or blank)
        return [*first, *(row for row in before if row["id"] not in ids)]

    return _edit(project, number, edited)


def _refuse_strangers(before: Sequence[Row], ids: Sequence[str]) -> None:
    strangers = set(ids) - {row["id"] for row in before}
    if strangers:
        raise CurateError(f"{len(strangers)} of these images are not in the round, such as {min(strangers)[:12]}")


def _edit(project: Project, number: int | None, edited: Callable[[Index, list[Row]], list[Row]]) -> Round:
    with writing(project, "edit round"):
        round_ = rounds.find(project.work, number)
        if round_.touched:
            remedy = "Take it back first: curate push --withdraw" if round_.pushed else "Select the next one"
            raise CurateError(f"{round_.name} is not edited any more: people work on it. {remedy}")
        index = Index(project)
        rows = edited(index, round_.picks())
        if not rows:
            raise CurateError(f"{round_.name} would be empty. Choose another one: curate select")
        rows = [row | {"rank": rank} for rank, row in enumerate(rows, start=1)]
        ids, values, names = round_.predicted()
        columns = {rounds.class_column(name): values[:, place] for place, name in enumerate(names)}
        predicted = {"id": ids} | columns if ids else None
        written = rounds.write(project.work, round_.manifest | _counts(rows), rows, predicted)
        rounds.show(index)
        return written


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
    """The facts of the manifest that follow from the picks."""
    return {
        "picked": len(rows),
        "slots": dict(Counter(row["slot"] for row in rows)),
        "by_stratum": dict(sorted(Counter(row["stratum"] or "" for row in rows).items())),
        "groups": len({row["group"] for row in rows}),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "edited_by": user_name(),
    }
