"""Synthetic images in the index: those that the label log says are accepted. (`synth/accept.py` decides.)

An entry of the log says that an image of a batch was accepted, or dropped. So `curate index` restores them after the
database was lost, and dropped ones stay out.
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
from curate.labels.log import Entry, LabelLog, Segments, now, user_name
from curate.labels.splits import Decisions
from curate.project import SYNTHETIC, Project

FORMAT = "synth"
NOTE = "synthetic"  # key of these facts in a log entry
TAG = "synthetic-"


class SyntheticOrigin(NamedTuple):
    """Origin of a synthetic image.

    `background` is the id of the clean image below it, `path` its own file (`source:path`), `donor` the group of the
    real defect that it was made from.
    """

    batch: str
    background: str
    path: str
    donor: str = ""


def accepted(label_log: LabelLog) -> dict[str, SyntheticOrigin]:
    """Return the images that are accepted today, by content id."""
    label_log.writer.push()
    return _read_origins(label_log.segments)


def _read_origins(segments: Segments) -> dict[str, SyntheticOrigin]:
    origins: dict[str, SyntheticOrigin] = {}
    for line in segments.lines_with(f'"{NOTE}":'.encode()):
        try:
            about = line.get("extra", {}).get(NOTE)
            if about and about["in"] and _is_in_batch(about):
                origins[line["id"]] = SyntheticOrigin(
                    about["batch"], about["ground"], about["path"], about.get("donor", "")
                )
            elif about:
                origins.pop(line["id"], None)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise CurateError(f"{segments.folder}: an entry of a synthetic image is damaged; restore it") from None
    return origins


def _is_in_batch(about: Mapping[str, Any]) -> bool:
    """Return True if the file lies in its batch's folder: a log restored from a backup is not trusted."""
    batch, (folder, *rest) = about["batch"], about["path"].split("/")
    return batch not in ("", ".", "..") and folder == f"{SYNTHETIC}:{batch}" and ".." not in rest


def reference(batch: str, file: str) -> str:
    """Return the `source:path` of a batch's file."""
    return f"{SYNTHETIC}:{batch}/{file}"


def log(label_log: LabelLog, id: str, origin: SyntheticOrigin, label: Label | None, forced: bool = False) -> None:
    """Record that an image was accepted with this label; without one, that it was dropped."""
    batch, background, path, donor = origin
    about = {"batch": batch, "ground": background, "path": path, "donor": donor, "in": label is not None}
    about |= {"forced": True} if forced else {}
    label_log.append(Entry(id, label or UNLABELLED, "decision", user_name(), now(), None, {NOTE: about}))


def tag_of(batch: str) -> str:
    """Return the tag of a batch's images."""
    return TAG + batch[:8]


def tags(index: Index) -> list[str]:
    """Return the tags of the batches that the index shows, for its saved views."""
    return sorted(name for name in index.dataset.distinct("tags") if name.startswith(TAG))


def group_of(origin: SyntheticOrigin, background: str, decisions: Decisions, held_out: str | None = None) -> str:
    """Return a synthetic image's group: that of its background.

    It is the donor's group if that is in val or test by now (two groups turned out to be one piece), or else
    `held_out`, such a group that its synthesiser has learnt from: then the image is neither trained on nor evaluated.
    """
    donor = origin.donor if decisions.split(origin.donor) in ("val", "test") else None
    return decisions.group(donor or held_out or background)


def held_out_groups(project: Project, origins: Iterable[SyntheticOrigin], decisions: Decisions) -> dict[str, str]:
    """Return {batch: group} for batches whose synthesiser has learnt from a group that is in val or test by now."""
    learnt = {batch: _groups_learnt(project, batch) for batch in {origin.batch for origin in origins}}
    held_out = {batch: [g for g in groups if decisions.split(g) in ("val", "test")] for batch, groups in learnt.items()}
    return {batch: groups[0] for batch, groups in held_out.items() if groups}


def _groups_learnt(project: Project, batch: str) -> list[str]:
    """Return the groups that a batch's synthesiser learnt from; none if its manifest is gone or damaged."""
    try:
        manifest = json.loads((project.work / "synth" / batch / "manifest.json").read_text(encoding="utf-8"))
        return [str(group) for group in manifest["learnt"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def add(
    index: Index, label_log: LabelLog, wanted: Mapping[str, SyntheticOrigin], groups: Mapping[str, str]
) -> list[NewSample]:
    """Add these images, each in the group of its background; those with missing or damaged files are left out."""
    project = index.project
    readable = {id: origin for id, origin in wanted.items() if _is_readable(project, origin)}
    new = [_sample(project, label_log, id, origin, groups) for id, origin in readable.items()]
    index.add(new)
    return new


def _is_readable(project: Project, origin: SyntheticOrigin) -> bool:
    try:
        _image_facts("", project.path(origin.path))
    except OSError:
        return False
    return True


def _sample(
    project: Project, label_log: LabelLog, id: str, origin: SyntheticOrigin, groups: Mapping[str, str]
) -> NewSample:
    path = project.path(origin.path)
    return NewSample(
        image=_image_facts(id, path),
        path=path,
        reference=origin.path,
        source="synthetic",
        format=FORMAT,
        group=groups.get(origin.background, origin.background),
        stratum=None,
        state=label_log.state(id),
        tags=(tag_of(origin.batch),),
    )


def _image_facts(id: str, path: Path) -> ImageFacts:
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        return ImageFacts(id, image.width, image.height, len(image.getbands()), path.stat().st_size, "image/png", None)


def remove_others(index: Index, known: Mapping[str, SyntheticOrigin]) -> list[str]:
    """Remove the synthetic images that are not accepted; returns their ids."""
    gone = [id for id, format in index.rows("format") if format == FORMAT and id not in known]
    index.remove(gone)
    return gone


def files_of_batches(project: Project) -> Iterator[Path]:
    """Yield the files of accepted batches, for a backup: these images exist nowhere else."""
    batches = {origin.batch for origin in _read_origins(Segments(project.work / "labels")).values()}
    for batch in sorted(batches):
        yield from sorted(path for path in (project.work / "synth" / batch).rglob("*") if _is_regular_file(path))


def _is_regular_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
