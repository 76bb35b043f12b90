"""`curate embed`: compute the vectors that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from curate import embed as encoders
from curate.embed._base import Encoder
from curate.errors import CurateError
from curate.ops._lock import writing
from curate.project import Project
from curate.vectors import run as embedding
from curate.vectors.run import EmbedReport
from curate.vectors.store import open_latest

DEVICES = ("auto", "cpu", "cuda")


def run(
    project: Project,
    encoder: str | None = None,
    given: Sequence[str] = (),
    device: str = "auto",
    *,
    command: str = "embed",
    **options: Any,
) -> EmbedReport:
    """Embed the images that have no vectors yet.

    Args:
        project: the project.
        encoder: its name; without one that of the newest vectors, with their options, else the default.
        given: its options, each as `key=value`.
        device: `auto`, `cpu` or `cuda`.
        command: its name in the log.
        options: `engine`, `batch`, `workers` and `progress` of `curate.vectors.run.run`.

    Returns:
        The report.
    """
    if device not in DEVICES:
        raise CurateError(f"--device '{device}' does not exist; allowed: {', '.join(DEVICES)}")
    name, given = (encoders.plain(encoder), given) if encoder else usual(project, given)
    parsed = encoders.CATALOGUE.parse(name, given)
    with writing(project, command, views=False):
        return embedding.run(project, _built(project, name, parsed, device), parsed, **options)


def usual(project: Project, given: Sequence[str] = ()) -> tuple[str, Sequence[str]]:
    """The encoder and the options that are taken where none is named: those of the newest vectors, so that a project
    does not change its encoder by itself. Options that are given stand for all of that encoder's."""
    try:
        words = shlex.split(open_latest(project.work).table.metadata.get("command", ""))
    except (CurateError, ValueError):
        words = []
    named = dict(pairwise(words)).get("--encoder", "")
    if named not in encoders.names():
        return encoders.DEFAULT, given
    return named, given or [value for key, value in pairwise(words) if key == "--set"]


def _built(project: Project, name: str, options: dict[str, Any], device: str) -> Encoder:
    takes = "device" in encoders.options(name)
    if device == "cuda" and not takes and name != "model":
        raise CurateError(f"--device cuda: encoder {name} runs on the CPU alone; leave --device out")
    handed = {"handle": _trained(project, device)} if name == "model" else {}
    return encoders.build(name, ({"device": device} if takes else {}) | options, **handed)


def _trained(project: Project, device: str) -> Any:
    from train.predict.encoder import current_encoder  # torch takes seconds to import

    return current_encoder(project, device)
