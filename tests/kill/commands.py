"""The commands that write, and the project that each starts from: small drawn steel, so that a run takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from synth.check import GATES

SMALL = 'model.options={"encoder_depth": 3, "decoder_channels": [32, 16, 8]}'
NETWORK = ("model.encoder=resnet18", SMALL, "input.height=64", "input.width=64", "batch=8", "epochs=2")
TRAIN = ("train", "--recipe", "unet-resnet", "--weights", "none", *(w for s in NETWORK for w in ("--set", s)))
PASTE = ("synth", "generate", "paste", "--class", "hole", "--count", "3", "--window", "48")
BATCH = "{batch}"  # the key of the newest synthetic batch
Edit = Callable[[Path], None]  # what somebody does to the project's folder, in between


@dataclass(frozen=True)
class Base:
    """A prepared project: another one, on which commands were run and something was changed."""

    after: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()
    edit: Edit | None = None


@dataclass(frozen=True)
class Command:
    """What is run and killed. `embedded`: on a database of its own, as a user has it, and not on the run's.

    `studio`: with a real Label Studio, from which all projects are removed first ("empty") or which is left as it is.
    `indexed`: the project has an index afterwards, and `status` works.
    """

    base: str
    words: tuple[str, ...]
    embedded: bool = False
    project: str = "projects/plant"
    studio: str = ""
    indexed: bool = True


# --- the plant ------------------------------------------------------------------------------------------------------


def draw(home: Path) -> None:
    """A library of 16 pieces in two views, ten production images, one broken file, and a copy that contradicts."""
    from tests.synth.conftest import drawn, save

    library = save(home / "data" / "library", 16)
    shutil.copy(library / "images" / "piece00_0.png", library / "images" / "piece00_9.png")
    shutil.copy(library / "masks" / "crack" / "piece00_0.png", library / "masks" / "hole" / "piece00_9.png")
    (library / "images" / "piece90_0.png").write_bytes(b"no image")
    for number in range(10):
        file = home / "data" / "line" / "A" / f"cam{number % 2}" / f"coil{number // 2}_{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn(50 + number, 3)[0]).save(file)


def configure(home: Path) -> None:
    from curate.admin import setup
    from tests.conftest import LIBRARY, LINE

    sources = [LIBRARY | {"data": home / "data" / "library"}, LINE | {"data": home / "data" / "line"}]
    setup.write(home / "projects" / "plant", sources, ("crack", "hole"))


def change_sources(home: Path) -> None:
    """Files that came, went, and say something else than before."""
    library = home / "data" / "library"
    (library / "masks" / "crack" / "piece00_1.png").unlink()
    (library / "images" / "piece04_1.png").unlink()
    shutil.copy(library / "masks" / "hole" / "piece01_0.png", library / "masks" / "hole" / "piece05_0.png")
    Image.fromarray(np.full((80, 96), 90, np.uint8)).save(library / "images" / "piece20_0.png")
    (home / "data" / "line" / "A" / "cam0" / "coil0_0.png").rename(home / "data" / "line" / "A" / "cam0" / "moved.png")


def edit_in_app(home: Path) -> None:
    """A class that is put right, a region that is drawn, one that is removed, and a decision between two copies."""
    import fiftyone as fo

    from curate.index.dataset import Index
    from curate.project import load

    dataset = Index(load(home / "projects" / "plant")).dataset
    shown = list(dataset.sort_by("filepath"))
    drawn = [sample for sample in shown if sample.defects and sample.defects.detections]
    bare = [sample for sample in shown if sample.status == "unlabelled"]
    drawn[0].defects.detections[0].label = "hole"
    drawn[1].defects.detections = []
    for sample in bare[:3]:
        sample.defects = fo.Detections(detections=[fo.Detection(label="crack", bounding_box=[0.25, 0.25, 0.25, 0.25])])
    for sample in (*drawn[:2], *bare[:3]):
        sample.save()


def annotate(home: Path) -> None:
    """Somebody labels one task, skips another, and leaves the third."""
    from curate.data import Label
    from curate.masks.shapes import defect_from_mask
    from curate.project import load
    from labeling import client, remote_project, results, tasks
    from tests.labeling import studio as people

    project = load(home / "projects" / "plant")
    studio = client.connect(project)
    ls_project = remote_project.find(project, studio)
    assert ls_project is not None
    first, second, *_ = tasks.held(ls_project)
    mask = np.zeros((80, 96), np.uint8)
    mask[20:30, 10:50] = 1
    defect = defect_from_mask("crack", mask)
    assert defect is not None
    people.annotate(studio, first.id, results.of_label(Label("labelled", (defect,)), (96, 80)))
    people.annotate(studio, second.id, [], cancelled=True)


BASES = {
    "drawn": Base(edit=draw),
    "bare": Base("drawn", edit=configure),
    "indexed": Base("bare", (("index",),)),
    "changed": Base("indexed", edit=change_sources),
    "edited": Base("indexed", edit=edit_in_app),
    "archived": Base("indexed", (("backup", "{home}/archive.tar.gz"),)),
    "embedded": Base("indexed", (("embed", "--encoder", "texture"),)),
    "chosen": Base("embedded", (("select", "--budget", "3"),)),
    "pushed": Base("chosen", (("push",),), annotate),
    "trained": Base("embedded", (TRAIN,)),
    "predicted": Base("trained", (("predict", "--all"), ("select", "--budget", "3"))),
    "evaluated": Base("predicted", (("evaluate",),)),
    "promoted": Base("evaluated", (("models", "promote", "--force"), (*TRAIN, "--set", "seed=7"), ("predict",))),
    "twice": Base("promoted", (("models", "promote", "--force"),)),
    "made": Base("trained", (PASTE,)),
    "checked": Base(
        "made", (("synth", "check", BATCH, *(w for gate in GATES if gate != "mask" for w in ("--without", gate))),)
    ),
    "accepted": Base("checked", (("synth", "accept", BATCH, "--force"),)),
    "fitted": Base("indexed", (("synth", "fit", "gan", "--window", "48", "--set", "steps=4", "--set", "batch=2"),)),
}

INIT = ("init", "plant", "--format", "mask_folder", "--data", "{home}/data/library", "--fully-labelled")
ARMS = ("--arm", "balanced", "--arm", "paste", "--class", "hole", "--budget", "2", "--ratio", "1", "--seeds", "1")
SIZES = ("--steps", "2", "--size", "32", "--folds", "2", "--tested", "1", "--cleans", "2", "--recipe", "unet-resnet")
TRIAL = (
    "synth",
    "trial",
    *ARMS,
    *SIZES,
    *(w for s in ("model.encoder=resnet18", "model.weights=none", SMALL) for w in ("--set", s)),
)
PLAY = ("simulate", "--strategies", "random", "--rounds", "2", "--budget", "4", "--seeds", "1", "--folds", "2")

COMMANDS = {
    "index": Command("bare", ("index",)),
    "index-changes": Command("changed", ("index",)),
    "index-edits": Command("edited", ("index",)),
    "index-rebuild": Command("edited", ("index", "--rebuild")),
    "index-folds": Command("indexed", ("index", "--folds", "3")),
    "index-embedded": Command("bare", ("index",), embedded=True),
    "rename": Command("edited", ("classes", "rename", "crack", "fissure")),
    "merge": Command("edited", ("classes", "merge", "crack", "--into", "hole")),
    "add": Command("indexed", ("classes", "add", "rust")),
    "retire": Command("indexed", ("classes", "retire", "crack")),
    "resolve": Command("edited", ("resolve", "--keep", "first")),
    "embed": Command("edited", ("embed", "--encoder", "texture", "--batch", "8")),
    "anomaly": Command("embedded", ("anomaly",)),
    "duplicates": Command("embedded", ("duplicates", "--join", "--near", "0.9")),
    "select": Command("embedded", ("select", "--budget", "3")),
    "select-again": Command("chosen", ("select", "--budget", "5")),
    "push": Command("chosen", ("push",), studio="empty"),
    "pull": Command("pushed", ("pull",), studio="kept"),
    "backup": Command("chosen", ("backup", "{home}/archive.tar.gz")),
    "restore": Command("archived", ("restore", "{home}/archive.tar.gz", "--trust", "--to", "{home}/projects/back")),
    "restore-force": Command(
        "archived", ("restore", "{home}/archive.tar.gz", "--trust", "--to", "{project}", "--force")
    ),
    "restore-embedded": Command(
        "archived",
        ("restore", "{home}/archive.tar.gz", "--trust", "--to", "{home}/projects/back"),
        embedded=True,
        project="projects/back",
    ),
    "train": Command("edited", TRAIN),
    "predict": Command("trained", ("predict", "--all")),
    "evaluate": Command("predicted", ("evaluate",)),
    "decide": Command("predicted", ("models", "decide", "--target-recall", "hole=1.0")),
    "promote": Command("evaluated", ("models", "promote", "--force")),
    "rollback": Command("twice", ("models", "rollback")),
    "gc": Command("promoted", ("gc", "--yes")),
    "export": Command("indexed", ("export", "{home}/out", "--format", "coco")),
    "synth-fit": Command("indexed", ("synth", "fit", "gan", "--window", "48", "--set", "steps=4", "--set", "batch=2")),
    "synth-generate": Command("indexed", PASTE),
    "synth-check": Command("made", ("synth", "check", BATCH)),
    "synth-accept": Command("checked", ("synth", "accept", BATCH, "--force")),
    "synth-drop": Command("accepted", ("synth", "drop", BATCH, "--files")),
    "synth-trial": Command("indexed", TRIAL),
    "simulate": Command("embedded", PLAY),
    "explain": Command("evaluated", ("explain", "--images", "2")),
    "robustness": Command("evaluated", ("robustness",)),
    "export-model": Command("evaluated", ("export-model", "--force", "--calibration", "2")),
    "tune": Command("indexed", ("tune", *TRAIN[1:], "--trials", "2", "--time", "10m")),
    "init": Command("drawn", INIT, indexed=False),
    "demo": Command("drawn", ("demo", "--images", "60"), project="projects/demo", indexed=False),
}
