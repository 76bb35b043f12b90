"""Writes to the index that break off anywhere are completed by the same write once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest

from curate.index import rounds
from curate.index.dataset import Index
from curate.project import Project
from curate.vectors import duplicates
from curate.vectors.duplicates import Cluster, DuplicateCandidate

FIELDS = (*rounds.FIELDS, *duplicates.FIELDS)


def breaking_off(index: Index, at: int, patch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt in place of the nth declaration, tag, or value of a field."""
    number = count()

    def counted(theirs: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            if next(number) == at:
                raise KeyboardInterrupt
            return theirs(*arguments, **options)

        return write

    for owner, name in ((index, "declare"), (index, "_set_shared"), (index, "tag")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


def show_round(index: Index, ids: Sequence[str]) -> None:
    picks = [{"id": id, "slot": "audit", "rank": n, "score": 0.5, "reason": f"{n}"} for n, id in enumerate(ids)]
    rounds.write(index.project.work, {"round": 1}, picks)
    rounds.show(index)


def show_cluster(index: Index, ids: Sequence[str]) -> None:
    kept, *others = (DuplicateCandidate(id, id, "unlabelled", None, "library", 8, 8, 8, id) for id in ids)
    duplicates._write(index, [Cluster(kept, others, dict.fromkeys(ids, 0.9))])


def shown(index: Index) -> Iterator[tuple[Any, ...]]:
    for id, tags, *values in index.rows("tags", *FIELDS[:5] if index.dataset.get_field("round") else FIELDS[5:]):
        yield id, *tags, *values


@pytest.mark.parametrize("fresh", [True, False], ids=["for the first time", "over another one"])
@pytest.mark.parametrize("show", [show_round, show_cluster])
def test_what_broke_off_is_completed(
    indexed: Project, show: Callable[[Index, Sequence[str]], None], fresh: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index(indexed)
    first, second = sorted(index.ids())[:3], sorted(index.ids())[2:5]
    show(index, first)
    show(index, second)
    wanted = list(shown(index))
    for at in count():
        show(index, first)
        if fresh:
            index.tag("audit", first, on=False)
            index.tag("round 001", first, on=False)
            index.dataset.delete_sample_fields([name for name in FIELDS if index.dataset.get_field(name)])
        with monkeypatch.context() as patch:
            breaking_off(index, at, patch)
            try:
                show(index, second)
                break
            except KeyboardInterrupt:
                pass
        show(index, second)
        assert list(shown(index)) == wanted, f"write {at}"
    assert at > 3


def test_database_indexes_that_a_kill_left_out_are_made(indexed: Project) -> None:
    index = Index(indexed)
    known = set(index.dataset.list_indexes())
    for name in ("created_at", "last_modified_at", "status"):
        index._samples().drop_index(f"{name}_1")
    assert set(Index(indexed, create=True).dataset.list_indexes()) == known
