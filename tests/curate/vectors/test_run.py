"""`curate embed`: only what is missing, whatever was killed, and the same vectors however the work is spread."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from curate import embed
from curate.embed._images import EncodedImage
from curate.errors import CurateError, LabelProblem
from curate.index.dataset import Index
from curate.masks.decode import pixels_of
from curate.ops import embed as embed_ops
from curate.project import Project
from curate.tables import Table
from curate.vectors import run as embedding
from curate.vectors.run import outcomes
from curate.vectors.store import Vectors, open_latest
from tests import fakes
from tests.curate.cli.test_cli import Run, failed, ok, run  # noqa: F401 - `run` is a fixture

LIMIT = 10_000_000


def todo(folder: Path, count: int = 12, size: tuple[int, int] = (96, 40)) -> list[tuple[str, str]]:
    return [named(fakes.save_image(folder / f"{n:03d}.png", *size, seed=n)) for n in range(count)]


def named(file: Path) -> tuple[str, str]:
    return hashlib.sha256(file.read_bytes()).hexdigest(), str(file)


def assert_same(first: Sequence[EncodedImage], second: Sequence[EncodedImage]) -> None:
    assert [image.id for image in first] == [image.id for image in second]
    for a, b in zip(first, second, strict=True):
        assert a.problem == b.problem
        assert (a.boxes == b.boxes).all()
        assert np.allclose(a.vectors, b.vectors, atol=1e-6)


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_batch_size_changes_nothing(tmp_path: Path) -> None:
    work, encoder = todo(tmp_path), embed.build("texture")
    calm = list(outcomes(encoder, work, LIMIT, batch=128))
    assert [image.id for image in calm] == [id for id, _ in work]
    assert all(len(image.boxes) == len(image.vectors) > 1 for image in calm)
    assert_same(calm, list(outcomes(encoder, work, LIMIT, batch=1)))


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, encoder = todo(tmp_path, 60), embed.build("texture")
    alone = list(outcomes(encoder, work, LIMIT, workers=0))
    monkeypatch.setattr(embedding, "WORTH", -1.0)
    assert_same(alone, list(outcomes(encoder, work, LIMIT, workers=2)))


@pytest.mark.exhaustive
def test_ray_gives_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    work, encoder = todo(tmp_path, 20), embed.build("texture")
    (tmp_path / "003.png").write_bytes(b"no image")
    spread = list(outcomes(encoder, work, LIMIT, engine="ray", batch=4, workers=1))
    assert_same(list(outcomes(encoder, work, LIMIT)), spread)
    assert [image.problem is None for image in spread].count(False) == 1
    assert "starting Ray takes about 10 s" in capsys.readouterr().err


def test_files_that_cannot_be_embedded_say_why(tmp_path: Path) -> None:
    work = todo(tmp_path, 5)
    Path(work[0][1]).unlink()
    Path(work[1][1]).write_bytes(Path(work[2][1]).read_bytes())
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(work[3][1]).read_bytes()[:200])
    found = list(outcomes(embed.build("texture"), [*work, named(cut)], LIMIT))
    problems = [image.problem or "" for image in found]
    assert "No such file" in problems[0]
    assert "changed since it was indexed" in problems[1]
    assert problems[2:5] == [""] * 3
    assert "damaged image: " in problems[5]
    assert all(len(image.vectors) == 0 for image in found if image.problem)


def test_the_limit_on_pixels_holds_before_anything_is_decoded(tmp_path: Path) -> None:
    content = fakes.save_image(tmp_path / "a.png", 200, 100).read_bytes()
    with pytest.raises(LabelProblem, match=r"200x100 pixels are more than limits\.max_pixels = 19999"):
        pixels_of(content, 19_999)
    assert pixels_of(content, 20_000).shape == (100, 200)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_pixel_becomes_grey_or_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.full((6, 8), 200 * 256, np.uint16)) if mode == "I;16" else Image.new(mode, (8, 6), 1)
    image.save(tmp_path / "a.png")
    pixels = pixels_of((tmp_path / "a.png").read_bytes(), LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.shape in ((6, 8), (6, 8, 3))
    if mode == "I;16":
        assert (pixels == 200).all()


@dataclass(frozen=True)
class Moody:
    """An encoder that gives no number for dark windows."""

    name: str = "moody"
    key: str = "k"
    dim: int = 3
    tile: Any = "none"
    overlap: float = 0.0

    def prepare(self, window: Any) -> Any:
        return np.array([np.nan if window.mean() < 50 else 1.0, 0, 0])

    def encode(self, prepared: Any) -> Any:
        return np.stack(prepared).astype(np.float32)


def test_vectors_that_are_no_numbers_are_reported(tmp_path: Path) -> None:
    work = todo(tmp_path, 3)
    Image.new("L", (20, 20)).save(tmp_path / "dark.png")
    found = list(outcomes(Moody(), [*work[:2], named(tmp_path / "dark.png"), work[2]], LIMIT))
    assert [image.problem is None for image in found] == [True, True, False, True]
    assert "not a number" in str(found[2].problem)


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="allowed: local, ray"):
        list(outcomes(Moody(), todo(tmp_path, 1), LIMIT, engine="spark"))  # type: ignore[arg-type]


# --- a project ------------------------------------------------------------------------------------------------------


def test_twice_changes_nothing_and_new_images_cost_only_themselves(indexed: Project, line: Path) -> None:
    from curate.index import sync

    first = embedding.run(indexed, "texture")
    assert (first.embedded, first.kept, first.failed) == (26, 0, {})
    before = open_latest(indexed.work)
    second = embedding.run(indexed, "texture")
    assert (second.embedded, second.kept, second.windows) == (0, 26, 0)
    assert open_latest(indexed.work).table._data.version == before.table._data.version
    fakes.save_image(line / "A" / "cam0" / "coil9_99.png", 32, 24, seed=5)
    sync.run(indexed)
    third = embedding.run(indexed, "texture")
    assert (third.embedded, third.kept) == (1, 26)
    assert sorted(open_latest(indexed.work).ids()) == sorted(Index(indexed).ids())


def test_options_make_another_table(indexed: Project) -> None:
    first, second = embedding.run(indexed, "texture"), embedding.run(indexed, "texture", {"tile": "none"})
    assert first.key != second.key
    assert second.windows == second.embedded == 26
    found = open_latest(indexed.work, "texture")
    assert found.key == second.key
    embedding.run(indexed, "texture")
    assert open_latest(indexed.work).key == first.key, "what was asked for last is the newest"
    with pytest.raises(CurateError, match="--encoder texture --set tile=none"):
        found.whole(["no such id"])


def test_missing_and_damaged_files_are_counted_and_tried_again(indexed: Project, line: Path) -> None:
    file = line / "A" / "cam0" / "coil0_0.png"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    steps: list[tuple[str, int, int]] = []
    report = embedding.run(indexed, "texture", progress=lambda *step: steps.append(step))
    assert report.embedded == 25
    ((id, reason),) = report.failed.items()
    assert id == hashlib.sha256(content).hexdigest()
    assert str(file) in reason
    assert sum(done for _, done, _ in steps) == steps[0][2] == 26
    file.write_bytes(content)
    again = embedding.run(indexed, "texture")
    assert (again.embedded, again.kept, again.failed) == (1, 25, {})


SLOW = """
import sys, time
from pathlib import Path
from curate import embed
from curate.vectors import run as embedding
from curate.index.dataset import chunks
from curate.vectors.store import Vectors
folder = Path(sys.argv[1])
work = [line.split("|") for line in (folder / "todo").read_text().splitlines()]
encoder = embed.build("texture")
path = folder / "texture-k.lance"
vectors = Vectors.create(path, "k", encoder.dim)
report = embedding.EmbedReport("texture", "k", str(path))
for part in chunks(embedding.outcomes(encoder, work, 10**8, batch=2), 2):
    embedding._write(part, vectors, report)
    time.sleep(0.02)
"""


def test_kill_9_leaves_whole_images_and_the_rest_completes_them(tmp_path: Path) -> None:
    work = todo(tmp_path, 120)
    (tmp_path / "todo").write_text("\n".join("|".join(pair) for pair in work))
    path = tmp_path / "texture-k.lance"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], cwd=fakes.REPOSITORY)
    while not Table.exists(path) or len(Table(path)) < 30:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    vectors, encoder = Vectors(Table(path)), embed.build("texture")
    done = set(vectors.ids())
    assert 0 < len(done) < 120, "it ended before it could be killed"
    assert all(len(vectors.windows(id)) == len(vectors.windows(work[0][0])) for id in sorted(done)[:5])
    report = embedding.EmbedReport("texture", "k", str(path))
    rest = list(outcomes(encoder, [pair for pair in work if pair[0] not in done], LIMIT))
    embedding._write(rest, vectors, report)
    calm = np.stack([image.vectors[0] for image in outcomes(encoder, work, LIMIT)])
    assert np.allclose(Vectors(Table(path)).whole([id for id, _ in work]), calm, atol=1e-3)
    assert len(Table(path)) == 120 * len(vectors.windows(work[0][0]))


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command(run: Run, indexed: Project) -> None:  # noqa: F811
    report = ok(run("embed", "-p", indexed.folder, "--encoder", "texture", "--set", "tile=none", "--json"))
    assert (report["embedded"], report["kept"], report["windows"], report["failed"]) == (26, 0, 26, {})
    code, out, _ = run("embed", "-p", indexed.folder)  # without a name: the same encoder with the same options
    assert code == 0
    assert "embedded 0 / kept 26 / failed 0 / missing 0" in out
    assert "nothing to do" in out
    assert {"texture", "timm", "torchvision_file", "model"} <= ok(run("embed", "--list", "--json"))["encoders"].keys()
    assert "texture" in run("embed", "--list")[1]


def test_a_project_keeps_its_encoder_and_a_new_one_takes_the_default(indexed: Project) -> None:
    assert embed_ops.usual(indexed) == (embed.DEFAULT, [])
    first = embedding.run(indexed, "texture", {"tile": 64, "overlap": 0.5})
    assert embed_ops.usual(indexed) == ("texture", ["tile=64", "overlap=0.5"])
    assert (embed_ops.run(indexed).key, embed_ops.run(indexed).kept) == (first.key, 26)
    again = embed_ops.run(indexed, given=["overlap=0.25"])  # the other options stay
    assert again.key == embedding.run(indexed, "texture", {"tile": 64, "overlap": 0.25}).key
    options = {"weights": "/a folder/it's.pth", "bf16": True}
    embedding.run(indexed, replace(Moody(), name="torchvision_file-resnet18"), options, workers=0)
    name, given = embed_ops.usual(indexed)
    assert embed.CATALOGUE.parse(name, given) == options
    embedding.run(indexed, Moody(), {}, workers=0)
    assert embed_ops.usual(indexed) == (embed.DEFAULT, []), "no encoder of that name is known"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--encoder", "textur"), "did you mean 'texture'"),
        (("--encoder", "torchvision-file"), "--set weights=PATH"),
        (("--encoder", "model"), "Train one first: curate train"),
        (("--engine", "spark"), "allowed: local, ray"),
        (("--encoder", "texture", "--device", "cuda"), "runs on the CPU alone"),
        (("--device", "tpu"), "allowed: auto, cpu, cuda"),
        (("--set", "tile=3"), "32 pixels or more"),
    ],
)
def test_bad_input_is_one_clear_line(run: Run, indexed: Project, arguments: Any, text: str) -> None:  # noqa: F811
    assert text in failed(run("embed", "-p", indexed.folder, *arguments))
