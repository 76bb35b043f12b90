"""`curate duplicates`: near-duplicate images, across splits and sources, and which of each cluster to keep.

Copies of the same bytes are one sample already (the content id); this finds an image that was saved again, and the same
steel photographed twice. Clusters go to the index as fields, so that the App can show them; nothing is removed.
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
from curate.vectors import nearest, store

PROPOSED = 0.5  # of the usual distance: vectors propose generously, since thumbnails confirm
FIELDS = ("near_cluster", "near_of", "near_similarity", "near_splits")
ABOUT = ("group", "status", "split", "source", "width", "height", "metadata.size_bytes", "filepath")


@dataclass(slots=True)
class DuplicateCandidate:
    """The facts of an image that decide which copy is kept."""

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
    def rank(self) -> tuple[Any, ...]:
        """Sort key, best copy first: labelled before unlabelled, held out before train, then the better image."""
        held_out = -SPLITS.index(self.split) if self.split else 1
        return (self.status != "labelled", held_out, -self.width * self.height, -self.bytes, self.id)


@dataclass
class Cluster:
    """Near-duplicate images; `kept` is the one to work with."""

    kept: DuplicateCandidate
    others: list[DuplicateCandidate]
    similarity: dict[str, float]

    @property
    def members(self) -> list[DuplicateCandidate]:
        return [self.kept, *self.others]

    @property
    def splits(self) -> list[str]:
        """The splits of its images; with two or more, a model is tested on what it was trained on."""
        return sorted({image.split for image in self.members if image.split}, key=SPLITS.index)

    @property
    def sources(self) -> list[str]:
        return sorted({image.source for image in self.members})


@dataclass
class DuplicatesReport:
    """Result of `curate duplicates`; `joined` and `leaks` are filled when groups were joined."""

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
    vectors = store.open_latest(project.work, encoder)
    clusters, cosine = search(_images(index), vectors, threshold, project.config.limits.max_pixels, progress)
    _write(index, clusters)
    report = _report(clusters, len(vectors.ids()), cosine, vectors.name)
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
    vectors: store.Vectors,
    threshold: float | None,
    limit: int,
    progress: Callable[[str, int, int], None],
) -> tuple[list[Cluster], float]:
    """Return the clusters of near-duplicates, largest first, and the cosine that was used.

    Args:
        images: All images by content id.
        vectors: Their vectors.
        threshold: The cosine above which a pair is proposed; None chooses it by the data.
        limit: Pixels above which an image is not decoded.
        progress: Called with a stage, new steps and the total.
    """
    ids = sorted(set(vectors.ids()) & images.keys())
    matrix = vectors.whole(ids)
    finite = np.flatnonzero(np.isfinite(matrix).all(axis=1))
    ids, matrix = [ids[row] for row in finite], matrix[finite]
    cosine = nearest.cosine_at(matrix, PROPOSED) if threshold is None else threshold
    first, second, _ = pairs_above(matrix, cosine, progress=_as_steps(progress))
    proposed = zip(first.tolist(), second.tolist(), strict=True)
    confirmed = nearest.confirmed_pairs(proposed, [images[id].path for id in ids], limit)
    clusters = [_cluster(rows, ids, images, matrix) for rows in _connected(len(ids), confirmed)]
    return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.kept.id)), cosine


def _as_steps(progress: Callable[[str, int, int], None]) -> Callable[[int, int], None]:
    before = 0

    def step(done: int, total: int) -> None:
        nonlocal before
        progress("comparing", done - before, total)
        before = done

    return step


def _connected(n: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the clusters of two or more rows that pairs link (union-find with path halving)."""
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
    ordered = sorted(rows, key=lambda row: images[ids[row]].rank)
    similarity = matrix[ordered] @ matrix[ordered[0]]
    members = [images[ids[row]] for row in ordered]
    return Cluster(members[0], members[1:], {image.id: float(s) for image, s in zip(members, similarity, strict=True)})


def _write(index: Index, clusters: Sequence[Cluster]) -> None:
    """Write the fields of every member; those of images that are in no cluster any more are emptied.

    `near_cluster` comes last: from it the next run knows what a killed one left.
    """
    values: dict[str, dict[str, Any]] = {name: {} for name in FIELDS}
    if index.dataset.get_field(FIELDS[0]) is not None:
        outdated = [id for id, cluster in index.rows(FIELDS[0]) if cluster is not None]
        values = {name: dict.fromkeys(outdated) for name in FIELDS}
    if not clusters and not values[FIELDS[0]]:
        return
    fo = index.fo
    text = fo.StringField
    index.declare(near_cluster=text, near_of=text, near_similarity=fo.FloatField, near_splits=text)
    for cluster in clusters:
        for image in cluster.members:
            values["near_cluster"][image.id] = cluster.kept.id[:12]
            values["near_of"][image.id] = None if image is cluster.kept else cluster.kept.id
            values["near_similarity"][image.id] = round(cluster.similarity[image.id], 4)
            values["near_splits"][image.id] = ", ".join(cluster.splits) if len(cluster.splits) > 1 else None
    index.set({name: values[name] for name in reversed(FIELDS)})


def _join(project: Project, index: Index, clusters: Sequence[Cluster], report: DuplicatesReport) -> None:
    """Make each cluster one group, for good, so that no later split cuts through it."""
    decisions = Decisions(project.work / "splits")
    pairs = [(c.kept.group, image.group) for c in clusters for image in c.others if image.group != c.kept.group]
    report.joined = len({tuple(sorted(pair)) for pair in pairs})
    report.leaks = [asdict(leak) for leak in decisions.join(pairs)]
    shown = {id: (group, split) for id, group, split in index.rows("group", "split") if group}
    decided = {id: (decisions.group(group), decisions.split(group)) for id, (group, _) in shown.items()}
    moved = [id for id, place in decided.items() if place != shown[id]]  # also what a killed run left undone
    index.set({"group": {id: decided[id][0] for id in moved}, "split": {id: decided[id][1] for id in moved}})


def _report(clusters: Sequence[Cluster], images: int, threshold: float, name: str) -> DuplicatesReport:
    largest = [
        {
            "kept": c.kept.path,
            "others": [image.path for image in c.others[:5]],
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
        across_groups=sum(len({image.group for image in c.members}) > 1 for c in clusters),
        largest=largest,
    )
