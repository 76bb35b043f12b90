"""Train, val and test: decided once per group, then frozen. Pure functions, and the log that records the decisions.

A split never cuts through a group (a coil, a tile): groups are the unit everywhere here. Ties are broken by a hash of
group and seed, so that the same groups get the same splits on any machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curate import files
from curate.data import SPLITS
from curate.hashing import seeded_number
from curate.labels.log import Segments, now

FEW_GROUPS = 10


@dataclass(frozen=True, slots=True)
class Group:
    """A physical piece, and the number of its images that show each class (clean images show none)."""

    name: str
    images: int
    classes: Mapping[str, int]


def assign(
    groups: Sequence[Group],
    shares: Mapping[str, float],
    seed: int,
    settled: Mapping[str, Sequence[Group]] | None = None,
) -> dict[str, str]:
    """Return a split for each group: every class as near to `shares` as whole groups allow, the rarest class first.

    Args:
        groups: Groups without a split.
        shares: Share of each split, such as {"train": 0.7, "val": 0.15, "test": 0.15}.
        seed: Breaks ties.
        settled: By split, the groups that have one already; they count towards the shares.
    """
    quota = _Quota(groups, shares, settled or {})
    assigned: dict[str, str] = {}
    for name in quota.rarest_first():
        for group in sorted(groups, key=lambda g: seeded_number(seed, name, g.name)):
            if group.name not in assigned and (name is None or name in group.classes):
                assigned[group.name] = quota.take(group, name)
    return assigned


class _Quota:
    """The number of groups of each class that each split still lacks. Class None stands for all groups."""

    def __init__(
        self, groups: Sequence[Group], shares: Mapping[str, float], settled: Mapping[str, Sequence[Group]]
    ) -> None:
        everything = [*groups, *(g for members in settled.values() for g in members)]
        self._totals: Counter[str | None] = Counter(c for g in everything for c in (*g.classes, None))
        self._shares = {split: share for split, share in shares.items() if share > 0}
        self._image_count = sum(g.images for g in everything)
        self._counts: Counter[tuple[str, str | None]] = Counter()
        self._taken_images: Counter[str] = Counter()
        for split, members in settled.items():
            for group in members:
                self._count(split, group)

    def rarest_first(self) -> list[str | None]:
        names = sorted((n for n in self._totals if n is not None), key=lambda n: (self._totals[n], n))
        return [*names, None]

    def take(self, group: Group, name: str | None) -> str:
        split = max(self._shares, key=lambda s: (self._missing(s, name), self._free(s), -SPLITS.index(s)))
        self._count(split, group)
        return split

    def _missing(self, split: str, name: str | None) -> float:
        target = self._shares[split] * self._totals[name] if name is None else self._targets(self._totals[name])[split]
        return round(target - self._counts[split, name], 6)

    def _targets(self, total: int) -> dict[str, float]:
        """Return the shares of `total` groups of one class, but at least one a split where there are enough groups: a
        class that is absent from val or test cannot be evaluated there."""
        if total < len(self._shares):
            return {split: share * total for split, share in self._shares.items()}
        small: set[str] = set()
        while True:
            rest, weight = total - len(small), sum(s for split, s in self._shares.items() if split not in small)
            targets = {split: 1.0 if split in small else s * rest / weight for split, s in self._shares.items()}
            short = {split for split, target in targets.items() if target < 1}
            if not short:
                return targets
            small |= short

    def _free(self, split: str) -> float:
        return round(self._shares[split] * self._image_count - self._taken_images[split], 6)

    def _count(self, split: str, group: Group) -> None:
        self._taken_images[split] += group.images
        for name in (*group.classes, None):
            self._counts[split, name] += 1


def folds(groups: Sequence[Group], count: int, repeats: int, seed: int) -> dict[str, list[int]]:
    """Return each group's fold in each repeat of a grouped cross-validation, stratified like `assign`."""
    result: dict[str, list[int]] = {group.name: [] for group in groups}
    for repeat in range(repeats):
        for name, fold in _draw_folds(groups, count, seeded_number(seed, "folds", repeat)).items():
            result[name].append(fold)
    return result


def _draw_folds(groups: Sequence[Group], count: int, seed: int) -> dict[str, int]:
    totals = Counter(c for g in groups for c in (*g.classes, None))
    have: Counter[tuple[int, str | None]] = Counter()
    size: Counter[int] = Counter()
    placed: dict[str, int] = {}
    for name in [*sorted((n for n in totals if n is not None), key=lambda n: (totals[n], n)), None]:
        for group in sorted(groups, key=lambda g: seeded_number(seed, name, g.name)):
            if group.name in placed or (name is not None and name not in group.classes):
                continue
            fold = min(range(count), key=lambda f: (have[f, name], size[f], seeded_number(seed, name, group.name, f)))
            placed[group.name] = fold
            size[fold] += group.images
            have.update((fold, c) for c in (*group.classes, None))
    return placed


def few_groups(groups: Iterable[Group]) -> dict[str, int]:
    """Return the classes with too few groups for one small split to tell much (use folds), and their numbers."""
    counts = Counter(c for g in groups for c in g.classes)
    return {name: n for name, n in sorted(counts.items()) if n < FEW_GROUPS}


@dataclass(frozen=True, slots=True)
class Member:
    """The facts of one image that decide its split."""

    group: str
    source: str
    status: str
    classes: frozenset[str] = frozenset()
    audit: bool = False


def groups_of(members: Iterable[Member]) -> list[Group]:
    """Return the groups of these images, with their class counts, sorted by name."""
    images: Counter[str] = Counter()
    classes: dict[str, Counter[str]] = {}
    for member in members:
        images[member.group] += 1
        classes.setdefault(member.group, Counter()).update(member.classes)
    return [Group(name, images[name], dict(classes[name])) for name in sorted(images)]


def due(members: Sequence[Member], decisions: Decisions, shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Return splits for the groups that need one now.

    Labelled public images are stratified by class. Production images get a split when they are labelled: audit picks
    fill val and test, so that these keep the natural prior, all others go to train. (An audit also draws from groups
    that are train already, and those stay there.) Synthetic images are always train.
    """
    settled = {member.group for member in members if decisions.split(member.group)}
    public = groups_of(m for m in members if m.source == "public" and m.status in ("labelled", "disputed"))
    production = [m for m in members if m.source == "production" and m.status == "labelled"]
    audit = groups_of(m for m in production if m.audit)
    synthetic = {m.group: "train" for m in members if m.source == "synthetic" and m.group not in settled}
    held_out = {split: share for split, share in shares.items() if split != "train"}
    # A group of which the audit drew an image waits for that image's label: it is to fill val and test.
    awaited = (m.group for m in members if m.audit and m.status not in ("skipped", "disputed"))
    audited = set(awaited) if any(held_out.values()) else set()
    result = {m.group: "train" for m in production if m.group not in settled | audited}
    for groups, quota in ((audit, held_out), (public, shares)):
        if any(quota.values()):
            result |= _assign_new(groups, decisions, quota, seed)
    return result | synthetic


def _assign_new(groups: list[Group], decisions: Decisions, quota: Mapping[str, float], seed: int) -> dict[str, str]:
    total = sum(quota.values())
    settled: dict[str, list[Group]] = {split: [] for split in quota}
    for group in groups:
        split = decisions.split(group.name)
        if split in settled:
            settled[split].append(group)
    undecided = [group for group in groups if decisions.split(group.name) is None]
    return assign(undecided, {split: share / total for split, share in quota.items()}, seed, settled)


# --- what was decided ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leak:
    """Two groups in different splits that turned out to be one piece; the one in train, or else in val, moved."""

    kept: str
    joined: str
    moved_from: str
    moved_to: str


class Decisions:
    """Frozen splits and joined groups, append-only in `work/splits/`; whole batches or nothing."""

    def __init__(self, folder: Path) -> None:
        self._segments = Segments(folder)
        self._split: dict[str, str] = {}
        self._alias: dict[str, str] = {}
        for segment, offset, line in self._segments.lines():
            try:
                self._fold(line)
            except (KeyError, ValueError):
                raise self._segments.damaged(segment, offset) from None

    def group(self, name: str) -> str:
        """Return the group that `name` belongs to today."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def split(self, name: str) -> str | None:
        """Return the frozen split of a group, or None."""
        return self._split.get(self.group(name))

    def assign(self, splits: Mapping[str, str]) -> None:
        """Freeze the split of groups that have none; a group that has one keeps it."""
        undecided = {self.group(name): split for name, split in splits.items() if self.split(name) is None}
        self._append([{"group": name, "split": split, "at": now()} for name, split in sorted(undecided.items())])

    def join(self, pairs: Iterable[tuple[str, str]]) -> list[Leak]:
        """Join pairs of groups that are one piece; returns those in two splits, where test wins over val over train."""
        lines: list[dict[str, str]] = []
        leaks: list[Leak] = []
        for first, second in pairs:
            kept, joined = self.group(first), self.group(second)
            if kept != joined:
                leaks += self._joined(kept, joined, lines)
        self._write(lines)
        return leaks

    def _joined(self, kept: str, joined: str, lines: list[dict[str, str]]) -> list[Leak]:
        ours, theirs = self._split.get(kept), self._split.get(joined)
        winner = max((ours, theirs), key=lambda split: SPLITS.index(split) if split else -1)
        new = [{"join": joined, "into": kept, "at": now()}]
        if winner and winner != ours:
            new.append({"group": kept, "split": winner, "at": now()})
        for line in new:
            self._fold(line)
        lines += new
        if ours is None or theirs is None or ours == theirs:
            return []
        return [Leak(kept, joined, theirs if winner == ours else ours, str(winner))]

    def _append(self, lines: list[dict[str, str]]) -> None:
        for line in lines:
            self._fold(line)
        self._write(lines)

    def _write(self, lines: list[dict[str, str]]) -> None:
        if not lines:
            return
        files.write_text(self._segments.next(), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _fold(self, line: Mapping[str, str]) -> None:
        if "join" in line:
            joined, into = line["join"], line["into"]
            # A group joined into itself, over any number of steps: `group` would never end.
            if not isinstance(joined, str) or not isinstance(into, str) or self.group(into) == joined:
                raise ValueError(f"{joined} cannot be joined into {into}")
            self._alias[joined] = into
        else:
            if not isinstance(line["group"], str) or line["split"] not in SPLITS:
                raise ValueError(f"not a split: {line}")
            self._split[line["group"]] = line["split"]
