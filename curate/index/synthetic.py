"""Synthetic images in the index: which are there, as the label log has it. `synth/accept.py` decides; this follows.

An entry of the log says that an image of a batch came in, or went. So a lost database gets them back (`curate index`),
and what was dropped stays away.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from curate.data import UNLABELLED, Label
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.index.documents import NewSample
from curate.index.intake import ImageFacts
from curate.labels.log import Entry, LabelLog, Segments, me, now
from curate.labels.splits import Decisions
from curate.project import SYNTHETIC, Project

FORMAT = "synth"
NOTE = "synthetic"  # under which the log's entries say it
TAG = "synthetic-"


class SyntheticOrigin(NamedTuple):
    """Of which batch an image is, on which clean image it was painted, where its file is (`source:path`), and of which
    group the real defect is that it was made from."""

    batch: str
    ground: str
    path: str
    donor: str = ""


def entered(book: LabelLog) -> dict[str, SyntheticOrigin]:
    """The images that are in today, by content id."""
    book.writer.push()
    return _entered(book.segments)


def _entered(segments: Segments) -> dict[str, SyntheticOrigin]:
    found: dict[str, SyntheticOrigin] = {}
    for line in segments.holding(f'"{NOTE}":'.encode()):
        try:
            about = line.get("extra", {}).get(NOTE)
            if about and about["in"] and _inside(about):
                found[line["id"]] = SyntheticOrigin(
                    about["batch"], about["ground"], about["path"], about.get("donor", "")
                )
            elif about:
                found.pop(line["id"], None)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise CurateError(f"{segments.folder}: an entry of a synthetic image is damaged; restore it") from None
    return found


def _inside(about: Mapping[str, Any]) -> bool:
    """Whether the file lies in its batch's folder: a log can come from elsewhere, in a backup."""
    batch, (folder, *rest) = about["batch"], about["path"].split("/")
    return batch not in ("", ".", "..") and folder == f"{SYNTHETIC}:{batch}" and ".." not in rest


def reference(batch: str, file: str) -> str:
    return f"{SYNTHETIC}:{batch}/{file}"


def log(book: LabelLog, id: str, one: SyntheticOrigin, label: Label | None, forced: bool = False) -> None:
    """Note that an image came in with this label; without one, that it went."""
    about: dict[str, Any] = {**one._asdict(), "in": label is not None} | ({"forced": True} if forced else {})
    book.append(Entry(id, label or UNLABELLED, "decision", me(), now(), None, {NOTE: about}))


def tag_of(batch: str) -> str:
    return TAG + batch[:8]


def tags(index: Index) -> list[str]:
    """The batches that the index shows, for its saved views."""
    return sorted(name for name in index.dataset.distinct("tags") if name.startswith(TAG))


def group_of(one: SyntheticOrigin, ground: str, decisions: Decisions, held: str | None = None) -> str:
    """The ground's, so that it goes where that goes. The donor's, should it be in val or test by now (two groups turned
    out to be one piece), or that of which its synthesiser learnt: there the image teaches nothing, and no evaluation
    counts it."""
    donor = one.donor if decisions.split(one.donor) in ("val", "test") else None
    return decisions.group(donor or held or ground)


def held(project: Project, made: Iterable[SyntheticOrigin], decisions: Decisions) -> dict[str, str]:
    """By batch, a group in val or test by now of which its synthesiser has learnt, where there is one."""
    batches = {one.batch for one in made}
    found = {
        batch: [one for one in _learnt(project, batch) if decisions.split(one) in ("val", "test")] for batch in batches
    }
    return {batch: groups[0] for batch, groups in found.items() if groups}


def _learnt(project: Project, batch: str) -> list[str]:
    """The groups that a batch's manifest names; none where it is gone or damaged."""
    try:
        said = json.loads((project.work / "synth" / batch / "manifest.json").read_text(encoding="utf-8"))
        return [str(one) for one in said["learnt"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def add(
    index: Index, book: LabelLog, wanted: Mapping[str, SyntheticOrigin], groups: Mapping[str, str]
) -> list[NewSample]:
    """Show these images, each in the group of its ground; those whose files are gone or damaged are left out."""
    new = [_sample(index.project, book, id, one, groups) for id, one in wanted.items() if _there(index.project, one)]
    index.add(new)
    for batch in {wanted[one.id].batch for one in new}:
        index.tag(tag_of(batch), [one.id for one in new if wanted[one.id].batch == batch])
    return new


def _there(project: Project, one: SyntheticOrigin) -> bool:
    try:
        _picture("", project.path(one.path))
    except OSError:
        return False
    return True


def _sample(project: Project, book: LabelLog, id: str, one: SyntheticOrigin, groups: Mapping[str, str]) -> NewSample:
    path = project.path(one.path)
    return NewSample(
        picture=_picture(id, path),
        path=path,
        reference=one.path,
        source="synthetic",
        format=FORMAT,
        group=groups.get(one.ground, one.ground),
        stratum=None,
        state=book.state(id),
        key=book.key(id),
    )


def _picture(id: str, path: Path) -> ImageFacts:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        return ImageFacts(id, image.width, image.height, len(image.getbands()), path.stat().st_size, "image/png", None)


def remove_others(index: Index, known: Mapping[str, SyntheticOrigin]) -> list[str]:
    """Take out what the log does not know (any more); the ids."""
    gone = [id for id, format in index.rows("format") if format == FORMAT and id not in known]
    index.remove(gone)
    return gone


def kept(project: Project) -> Iterator[Path]:
    """The files of batches that are in, for a backup: nothing else holds these images."""
    batches = {one.batch for one in _entered(Segments(project.work / "labels")).values()}
    for batch in sorted(batches):
        yield from sorted(path for path in (project.work / "synth" / batch).rglob("*") if _is_own(path))


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
