"""`curate embed`: compute the vectors that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from curate import embed as encoders
from curate import tables
from curate.embed._base import Encoder
from curate.errors import CurateError
from curate.index.dataset import Index
from curate.ops._lock import no_progress, writing
from curate.project import Project
from curate.vectors import layout
from curate.vectors import run as embedding
from curate.vectors.run import EmbedReport


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
        device: `auto`, `cpu` or `cuda`, for encoders that run networks.
        command: its name in the log.
        options: `engine`, `batch`, `workers` and `progress` of `curate.vectors.run.run`.

    Returns:
        The report.
    """
    name, kept = (encoders.plain(encoder), []) if encoder else usual(project)
    parsed = encoders.CATALOGUE.parse(name, [*kept, *given])
    if isinstance(weights := parsed.get("weights"), str) and Path(weights).expanduser().is_file():
        parsed["weights"] = str(Path(weights).expanduser().resolve())  # the next run may start in another folder
    if encoder and device == "cuda" and not _takes_device(name):
        raise CurateError(f"--device cuda: encoder {name} runs on the CPU alone; leave --device out")
    with writing(project, command, views=False):
        report = embedding.run(project, _built(project, name, parsed, device), parsed, **options)
        layout.show(Index(project), progress=options.get("progress") or no_progress)
        return report


def usual(project: Project) -> tuple[str, list[str]]:
    """The encoder of the newest vectors with its options, as the command that made them names both; else the default.

    So a project does not change its encoder by itself. Raises CurateError where the newest table is damaged.
    """
    table = tables.latest(project.work / "vectors")
    words = list(pairwise(shlex.split(table.metadata.get("command", "")) if table else []))
    name = dict(words).get("--encoder")
    if name not in encoders.names():
        return encoders.DEFAULT, []
    return str(name), [value for key, value in words if key == "--set"]


def _takes_device(name: str) -> bool:
    return name == "model" or "device" in encoders.options(name)


def _built(project: Project, name: str, options: dict[str, Any], device: str) -> Encoder:
    if name == "model":
        from train.predict.encoder import current_encoder  # torch takes seconds to import

        return encoders.build(name, options, handle=current_encoder(project, device))
    return encoders.build(name, ({"device": device} if _takes_device(name) else {}) | options)
