"""`run`: a model on images that are in no index."""

from __future__ import annotations

import json as jsonlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curate.cli._common import DeviceOption, ProjectOption, device_named, open_project, tell
from curate.errors import CurateError, LabelProblem

if TYPE_CHECKING:
    from train.export.runner import Answer, Runner

SHOWN = 5  # failed images that are printed


def register(app: typer.Typer) -> None:
    app.command()(run)


def run(
    model: Annotated[
        str, typer.Argument(help="The folder of an export (curate export-model), or a stored model's key or alias.")
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="FOLDER|FILE|-", help="Images; -: their names, a line each, from stdin."),
    ] = None,
    project: ProjectOption = None,
    int8: Annotated[bool, typer.Option("--int8", help="The INT8 file of an export.")] = False,
    overlays: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each image with its defects outlined there.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Answer over HTTP on this machine: POST an image.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --serve; 0: any free one.")] = 9100,
    device: DeviceOption = "auto",
) -> None:
    """Apply a model to images that are in no index: a JSON line each, with defects, milliseconds and confidence.

    An exported model starts in about a second and needs neither torch nor a database. With --serve: curl --data-binary
    @image.png http://127.0.0.1:9100
    """
    from train.export import runner

    if serve == bool(images):
        raise CurateError("give images (a folder, files, or - for names from stdin), or --serve")
    is_file = Path(model).expanduser().exists() or "/" in model
    loaded = runner.load(model, None if is_file else open_project(project), int8, device_named(device))
    if serve:
        _serve(loaded, port)
    else:
        _apply(loaded, images or [], overlays)


def _apply(loaded: Runner, images: list[str], overlays: Path | None) -> None:
    from train.export import runner

    names = [name for name in images if name != "-"]
    if missing := [name for name in names if not Path(name).exists()]:
        raise CurateError(f"no file or folder {missing[0]}")
    ms, failed, defective = [], [], 0
    try:
        for path, answer in runner.apply(loaded, _paths(images)):
            if isinstance(answer, LabelProblem):
                failed.append(f"{path}: {answer}")
                _line({"file": str(path), "error": str(answer)})
                continue
            ms.append(answer.ms)
            defective += bool(answer.prediction.defects or answer.prediction.classes)
            _line({"file": str(path)} | answer.to_json())
            if overlays is not None:
                _write_overlay(loaded, overlays, path, answer)
    except BrokenPipeError:  # whoever read the lines has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if not ms and not failed:
        raise CurateError(f"no image in {', '.join(images)}")
    times = runner.latency(ms)
    told = f"{len(ms)} images, {defective} show something, {len(failed)} failed; {loaded.engine}"
    tell(f"{told}: p50 {times['p50_ms']:g} ms, p95 {times['p95_ms']:g} ms an image" if ms else told)
    for reason in failed[:SHOWN]:
        tell(f"failed: {reason}")
    if failed:
        raise typer.Exit(1)


def _paths(images: list[str]) -> Iterator[Path]:
    from train.export import runner

    for name in images:
        if name == "-":
            yield from (Path(line.rstrip("\n")) for line in sys.stdin if line.strip())
        else:
            yield from runner.images_of(Path(name))


def _line(entry: dict[str, Any]) -> None:
    sys.stdout.write(jsonlib.dumps(entry) + "\n")
    sys.stdout.flush()


def _write_overlay(loaded: Runner, folder: Path, path: Path, answer: Answer) -> None:
    from curate import files
    from train.export import runner

    inside = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    parts = [part for part in inside.parts if part not in ("..", "/")]
    target = folder.joinpath(*parts).with_suffix(".png")
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.written_aside(target) as aside:
        aside.write_bytes(runner.overlay(answer, loaded.predictor.classes))


# --- over HTTP ------------------------------------------------------------------------------------------------------


def _serve(loaded: Runner, port: int) -> None:
    from curate.http_server import Routes, listening

    turn = threading.Lock()

    class Model(Routes):
        header, secret, largest = "Curate-Token", os.environ.get("CURATE_RUN_TOKEN", ""), 64 << 20

        def read(self) -> tuple[int, dict[str, Any]]:
            if not self._is_local():
                return 403, {"error": "unknown Host"}
            return 200, {
                "model": loaded.predictor.key,
                "engine": loaded.engine,
                "classes": list(loaded.predictor.classes),
            }

        def answered(self, body: bytes) -> tuple[int, dict[str, Any]]:
            if not self._is_local():
                return 403, {"error": "unknown Host"}
            try:
                with turn:
                    return 200, loaded.answer(body).to_json()
            except LabelProblem as problem:
                return 422, {"error": str(problem)}

        def _is_local(self) -> bool:
            """A page that a browser was led to under another name gets no answer."""
            return self.headers.get("Host", "").rpartition(":")[0] in ("127.0.0.1", "localhost")

    with listening("127.0.0.1", port, Model) as url:
        tell(f"model {loaded.predictor.key} answers at {url}: POST an image. Ctrl-C ends it")
        threading.Event().wait()
