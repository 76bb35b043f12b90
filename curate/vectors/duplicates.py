"""`curate duplicates`: pictures that are nearly the same, across splits and sources, and which of them to keep.

Copies of the same bytes are one sample already (the content id); this finds the same picture saved again, and the same
steel seen twice. Clusters go to the index as fields, so that the App can show them; nothing is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from curate.data import SPLITS
from curate.greedy.neighbours import pairs_above
from curate.index.dataset import Index
from curate.labels.splits import Decisions
from curate.project import Project
from curate.vectors import nearest
from curate.vectors import store as vectors

PROPOSED = 0.5  # of the usual distance: vectors propose generously, since pictures confirm
FIELDS = ("near_cluster", "near_of", "near_similarity", "near_splits")
ABOUT = ("group", "status", "split", "source", "width", "height", "metadata.size_bytes", "filepath")


@dataclass(slots=True)
class DuplicateCandidate:
    """One image, as far as choosing between copies goes."""

    id: str
    group: str
    status: str
    split: str | None
    source: str
    width: int
    height: int
    bytes: int
    path: str

    @property
    def worth(self) -> tuple[Any, ...]:
        """Smallest first: labelled before unlabelled, held out before train, then the better picture."""
        held_out = -SPLITS.index(self.split) if self.split else 1
        return (self.status != "labelled", held_out, -self.width * self.height, -self.bytes, self.id)


@dataclass
class Cluster:
    """Images that are nearly the same; `kept` is the one to work with."""

    kept: DuplicateCandidate
    others: list[DuplicateCandidate]
    similarity: dict[str, float]

    @property
    def members(self) -> list[DuplicateCandidate]:
        return [self.kept, *self.others]

    @property
    def splits(self) -> list[str]:
        """Two or more: what was learnt from one is tested on another."""
        return sorted({one.split for one in self.members if one.split}, key=SPLITS.index)

    @property
    def sources(self) -> list[str]:
        return sorted({one.source for one in self.members})


@dataclass
class DuplicatesReport:
    """What was found; `joined` and `leaks` are filled when groups were joined."""

    images: int
    threshold: float
    vectors: str
    clusters: int = 0
    duplicates: int = 0
    across_splits: int = 0
    across_sources: int = 0
    across_groups: int = 0
    joined: int = 0
    leaks: list[dict[str, str]] = field(default_factory=list)
    largest: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    project: Project,
    threshold: float | None,
    encoder: str | None = None,
    join: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> DuplicatesReport:
    """Find clusters and write them to the index; with `join` each becomes one group. The caller holds the lock."""
    index = Index(project)
    found = vectors.open_latest(project.work, encoder)
    clusters, used = search(_images(index), found, threshold, project.config.limits.max_pixels, progress)
    _write(index, clusters)
    report = _report(clusters, len(found.ids()), used, found.name)
    if join:
        _join(project, index, clusters, report)
    return report


def _images(index: Index) -> dict[str, DuplicateCandidate]:
    rows = index.rows(*ABOUT)
    return {
        id: DuplicateCandidate(id, group or id, status or "unlabelled", split, source, width, height, bytes or 0, path)
        for id, group, status, split, source, width, height, bytes, path in rows
    }


def search(
    images: Mapping[str, DuplicateCandidate],
    found: vectors.Vectors,
    threshold: float | None,
    limit: int,
    progress: Callable[[str, int, int], None],
) -> tuple[list[Cluster], float]:
    """Connected images of at least this similarity, largest clusters first; and the cosine that was used."""
    ids = sorted(set(found.ids()) & images.keys())
    matrix = found.whole(ids)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    ids, matrix = [ids[row] for row in finite], matrix[finite]
    used = nearest.cosine(matrix, PROPOSED) if threshold is None else threshold
    first, second, _ = pairs_above(matrix, used, progress=_step(progress))
    proposed = zip(first.tolist(), second.tolist(), strict=True)
    close = nearest.confirmed(proposed, [images[id].path for id in ids], limit)
    clusters = [_cluster(rows, ids, images, matrix) for rows in _connected(len(ids), close)]
    return sorted(clusters, key=lambda one: (-len(one.members), one.kept.id)), used


def _step(progress: Callable[[str, int, int], None]) -> Callable[[int, int], None]:
    before = 0

    def step(done: int, total: int) -> None:
        nonlocal before
        progress("comparing", done - before, total)
        before = done

    return step


def _connected(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Rows that are linked by pairs, two or more together (union-find with path halving)."""
    parent = list(range(n))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for i, j in pairs:
        parent[max(root(i), root(j))] = min(root(i), root(j))
    linked: dict[int, list[int]] = {}
    for row in sorted({row for pair in pairs for row in pair}):
        linked.setdefault(root(row), []).append(row)
    return list(linked.values())


def _cluster(rows: Sequence[int], ids: Sequence[str], images: Mapping[str, DuplicateCandidate], matrix: Any) -> Cluster:
    ordered = sorted(rows, key=lambda row: images[ids[row]].worth)
    similarity = matrix[ordered] @ matrix[ordered[0]]
    members = [images[ids[row]] for row in ordered]
    return Cluster(members[0], members[1:], {one.id: float(s) for one, s in zip(members, similarity, strict=True)})


def _write(index: Index, clusters: Sequence[Cluster]) -> None:
    """The fields of every member; those of images that are in no cluster any more are emptied."""
    values: dict[str, dict[str, Any]] = {name: {} for name in FIELDS}
    if index.dataset.get_field(FIELDS[0]) is not None:
        stale = [id for id, cluster in index.rows(FIELDS[0]) if cluster is not None]
        values = {name: dict.fromkeys(stale) for name in FIELDS}
    if not clusters and not values[FIELDS[0]]:
        return
    fo = index.fo
    index.declare(near_cluster=fo.StringField, near_of=fo.StringField, near_similarity=fo.FloatField)
    index.declare(near_splits=fo.StringField)
    for cluster in clusters:
        for one in cluster.members:
            values["near_cluster"][one.id] = cluster.kept.id[:12]
            values["near_of"][one.id] = None if one is cluster.kept else cluster.kept.id
            values["near_similarity"][one.id] = round(cluster.similarity[one.id], 4)
            values["near_splits"][one.id] = ", ".join(cluster.splits) if len(cluster.splits) > 1 else None
    index.set(values)


def _join(project: Project, index: Index, clusters: Sequence[Cluster], report: DuplicatesReport) -> None:
    """One piece, one group: frozen decisions, so that no later split cuts through a cluster."""
    decisions = Decisions(project.work / "splits")
    pairs = [(c.kept.group, one.group) for c in clusters for one in c.others if one.group != c.kept.group]
    report.joined = len({tuple(sorted(pair)) for pair in pairs})
    report.leaks = [asdict(leak) for leak in decisions.join(pairs)]
    shown = {id: (group, split) for id, group, split in index.rows("group", "split") if group}
    held = {id: (decisions.group(group), decisions.split(group)) for id, (group, _) in shown.items()}
    moved = [id for id, place in held.items() if place != shown[id]]  # also those that a killed run left behind
    index.set({"group": {id: held[id][0] for id in moved}, "split": {id: held[id][1] for id in moved}})


def _report(clusters: Sequence[Cluster], images: int, threshold: float, name: str) -> DuplicatesReport:
    largest = [
        {
            "kept": c.kept.path,
            "others": [one.path for one in c.others[:5]],
            "images": len(c.members),
            "similarity": round(min(c.similarity.values()), 4),
            "splits": c.splits,
            "sources": c.sources,
        }
        for c in clusters[:10]
    ]
    return DuplicatesReport(
        images=images,
        threshold=threshold,
        vectors=name,
        clusters=len(clusters),
        duplicates=sum(len(c.others) for c in clusters),
        across_splits=sum(len(c.splits) > 1 for c in clusters),
        across_sources=sum(len(c.sources) > 1 for c in clusters),
        across_groups=sum(len({one.group for one in c.members}) > 1 for c in clusters),
        largest=largest,
    )
