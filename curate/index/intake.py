"""Check one record against its file: read the image, decode the label. Pure functions, run in parallel."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate import files
from curate.data import UNLABELLED, Defect, Label, MaskFile, Record
from curate.errors import LabelProblem
from curate.hashing import content_id, digest_of
from curate.masks import decode
from curate.paths import safe_join
from curate.project import LimitsConfig

STEP = 3  # raise it when the outcome of `image_facts` or `label_of` changes, so that every file is read again
MIME = {"JPEG": "image/jpeg", "PNG": "image/png", "BMP": "image/bmp", "TIFF": "image/tiff", "WEBP": "image/webp"}
SUFFIXES = {
    "JPEG": {".jpg", ".jpeg"},
    "PNG": {".png"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "WEBP": {".webp"},
}


@dataclass(frozen=True)
class SourceRules:
    """A source's config, as needed to check its records."""

    root: Path
    limits: LimitsConfig
    names: Mapping[str, str]
    allowed: frozenset[str]
    empty_mask_keeps_class: bool = False
    template: re.Pattern[str] | None = None
    stratum: str | None = None
    group: re.Pattern[str] | None = None

    @property
    def digest(self) -> str:
        """A hash that changes with any rule."""
        rules = (STEP, self.limits.model_dump_json(), sorted(self.names.items()), sorted(self.allowed))
        patterns = [pattern.pattern if pattern else None for pattern in (self.template, self.group)]
        rest = (self.empty_mask_keeps_class, patterns, self.stratum)
        return digest_of(repr((rules, rest)))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The facts of an image file that can be read."""

    id: str
    width: int
    height: int
    channels: int
    bytes: int
    mime: str
    note: str | None


def fingerprint(path: Path, record: Record, rules: SourceRules, rules_digest: str) -> str | None:
    """Return a hash that changes with the file, its masks, its label or the rules; None if the file is missing."""
    stats = [_stat(path)]
    if stats[0] is None:
        return None
    masks = [region.shape.path for region in record.regions if isinstance(region.shape, MaskFile)]
    stats += [_mask_stat(rules.root, mask) for mask in masks]
    return digest_of(repr((record, stats, rules_digest)))


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _mask_stat(root: Path, name: str) -> tuple[int, int] | None:
    try:
        return _stat(safe_join(root, name))
    except LabelProblem:
        return -1, -1


def image_facts(path: Path, record: Record, rules: SourceRules) -> ImageFacts:
    """Read the file. Raises LabelProblem with the reason if it is not a sound image."""
    content = files.read_bytes(path)
    width, height, channels, kind = _header(content, rules.limits)
    note = "; ".join(filter(None, (_suffix_note(path, kind), record.note))) or None
    return ImageFacts(content_id(content), width, height, channels, len(content), MIME[kind], note)


def _header(content: bytes, limits: LimitsConfig) -> tuple[int, int, int, str]:
    if not content:
        raise LabelProblem("file is empty (0 bytes)")
    with decode.opened(content, limits.max_pixels) as image:
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # several pictures in one JPEG
        _check_whole(image, kind, content, limits)
        return image.width, image.height, len(image.getbands()), kind


def _check_whole(image: Any, kind: str, content: bytes, limits: LimitsConfig) -> None:
    """Raise LabelProblem if the file is truncated; a JPEG's end marker and a PNG's checksums tell without decoding."""
    if limits.verify == "decode" or kind not in ("JPEG", "PNG"):
        image.load()
    elif kind == "PNG":
        image.verify()
        if b"IEND" not in content[-64:]:
            raise LabelProblem("truncated PNG: the end chunk is missing")
    elif b"\xff\xd9" not in content[-4096:]:
        raise LabelProblem("truncated JPEG: the end marker is missing")


def _suffix_note(path: Path, kind: str) -> str | None:
    suffix = path.suffix.lower()
    return None if suffix in SUFFIXES.get(kind, {suffix}) else f"{suffix} file holds {kind} bytes"


def label_of(record: Record, rules: SourceRules, width: int, height: int) -> Label:
    """Return the label of a record, decoded. Raises LabelProblem if it does not fit the image or the classes."""
    if record.size and record.size != (width, height):
        declared = f"{record.size[0]}x{record.size[1]}"
        raise LabelProblem(f"the label file says {declared}, the image is {width}x{height}")
    if not record.labelled:
        return UNLABELLED
    from curate.masks.shapes import defect_of  # its kernels take half a second to load

    clip = rules.limits.boxes == "clip"
    defects: list[Defect] = []
    for region in record.regions:
        name = _class_of(region.label, rules)
        defect = defect_of(region, width, height, rules.root, clip, record.path)
        if defect is not None:
            defects.append(replace(defect, label=name))
    classes = {_class_of(name, rules) for name in record.classes}
    if record.regions and not defects and rules.empty_mask_keeps_class:
        classes |= {_class_of(region.label, rules) for region in record.regions}
    return Label("labelled", tuple(defects), tuple(sorted(classes)))


def _class_of(label: str, rules: SourceRules) -> str:
    name = rules.names.get(label, label)
    if name not in rules.allowed:
        raise LabelProblem(f"unknown class '{name}'; allowed: {', '.join(sorted(rules.allowed)) or 'none'}")
    return name


# --- group and stratum from the path, where the format gives none ---------------------------------------------------


def template_pattern(template: str) -> re.Pattern[str]:
    """Return `{line}/{camera}/{date}/{name}` as a pattern of relative paths; a field never spans a slash."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    return re.compile(pattern + "$")


def stratum_of(path: str, rules: SourceRules) -> str | None:
    """Return the stratum that the template finds in the path, or None."""
    match = rules.template.match(path) if rules.template else None
    if match is None:
        return None
    fields = match.groupdict()
    if rules.stratum:
        return rules.stratum.format_map(fields)
    return "/".join(value for name, value in fields.items() if name not in ("name", "date")) or None


def group_of(path: str, rules: SourceRules) -> str | None:
    """Return the first bracketed part of the group pattern's match (or all of it), or None."""
    match = rules.group.search(path) if rules.group else None
    if match is None:
        return None
    return next((part for part in match.groups() if part), match.group(0))
