"""A project's own files, damaged: project.toml, archives, the label log, splits, rounds, tables, models."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests import fakes
from tests.fuzz import mutate
from tests.fuzz.kinds import OK, WRONG, Fault, Target

IDS = [hashlib.sha256(bytes([n])).hexdigest() for n in range(4)]
TOML = """\
dataset = "plant"

[[sources]]
name = "library"
format = "mask_folder"
data = "data/library"
kind = "public"
fully_labelled = true
group = "(piece\\\\d+)_"
options = { threshold = 128, class_from = "folder" }
classes = { crk = "crack" }

[[sources]]
format = "yolo"
data = "data/line"
labels = "data/labels"
template = "{line}/{camera}/{name}"
stratum = "{line}-{camera}"

[[classes]]
name = "crack"
color = "#e6194b"

[[classes]]
name = "hole"
retired = true

[aliases]
old = "crack"

[splits]
ratio = "70/15/15"
seed = 42

[limits]
max_pixels = 1000000
verify = "tail"

[select]
strategy = "portfolio"
budget = "4h"
options = { }

[labelstudio]
images = "local"
overlap = 0.1
severities = ["low", "high"]
"""
TOMLS = (
    "[" * 3000,
    "a = " + "[" * 3000,
    "a = " + "{a=" * 3000,
    "[a" + ".a" * 3000 + "]",
    "a = 1979-05-27T07:32:00Z\n",
    'sources = "x"\n',
    "sources = []\n",
    "[[sources]]\nformat = 3\n",
    'a = "\\ud800"\n',
    "a = " + "9" * 5000,
    "[splits]\nratio = [1, 2]\n",
    'group = "(((((((((((((((((((((((((a+)+)+)+)+)+)+"\n',
    'template = "{name}{name}"\n',
    'stratum = "{line.__class__}"\n',
)
_files: dict[str, dict[str, bytes]] = {}


def _below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def _damaged(random: Random, name: str, content: bytes, outside: Path) -> bytes:
    if name.endswith((".json", ".jsonl")):
        lines = content.splitlines(keepends=True) if name.endswith(".jsonl") else [content]
        at = random.randrange(len(lines))
        lines[at] = mutate.json_text(random, lines[at], outside) + (b"\n" if name.endswith(".jsonl") else b"")
        return b"".join(lines)
    if name.endswith((".toml", ".csv")):
        return mutate.text(random, content, outside, TOMLS if name.endswith(".toml") else ())
    return mutate.some_bytes(random, content, 300)


def _make_files(what: str, random: Random, root: Path) -> list[str]:
    """The files of a room, one or two of them damaged, or put out of place."""
    files = dict(_files[what])
    _write(root, files)
    damage = []
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice(sorted(files))
        if random.random() < 0.06:
            # Pipes and devices do not come into a project's own folder: an archive holds none.
            kinds = ("folder", "dangling", "empty", "gone")
            damage.append(f"{name}: {mutate.other_thing(random, root / name, root.parent / 'outside', kinds)}")
            continue
        if (root / name).is_symlink() or not (root / name).is_file():
            continue
        (root / name).write_bytes(_damaged(random, name, files[name], root.parent / "outside"))
        damage.append(name)
    return damage


def _maker(what: str) -> Callable[[Random, Path], list[str]]:
    return lambda random, root: _make_files(what, random, root)


def _project(root: Path) -> Any:
    from curate.project import Project, ProjectConfig

    config = {"sources": [{"format": "images", "data": "data"}], "classes": [{"name": "crack"}, {"name": "hole"}]}
    return Project(root, ProjectConfig.model_validate(config))


# --- project.toml -----------------------------------------------------------------------------------------------------


def _prepare_config() -> None:
    from curate.index import sync  # noqa: F401

    _files["config"] = {"project.toml": TOML.encode()}


def _check_config(case: Any, root: Path) -> str:
    """Everything that commands ask of a config before they touch anything else."""
    from curate import formats, strategies
    from curate.errors import CurateError
    from curate.index import sync
    from curate.project import load

    project = load(root)
    project.dataset_name.encode()
    assert set(project.colors) == set(project.class_names) >= set(project.active_classes)
    assert abs(sum(project.config.splits.shares.values()) - 1) < 1e-9
    refused: CurateError | None = None
    for source in project.config.sources:
        project.labels(source)
        try:
            rules = sync.rules_of(project, source)
            formats.read(source.format, root, None, source.fully_labelled, source.options)
        except CurateError as error:
            refused = error
            continue
        for path in ("a/b/piece1_2.png", "x.png", "l1/cam/é.png"):
            sync.intake.group_of(path, rules)
            sync.intake.stratum_of(path, rules)
    strategies.CATALOGUE.check(project.config.select.strategy, project.config.select.options)
    if refused:
        raise refused
    return OK


# --- archives ---------------------------------------------------------------------------------------------------------


def _prepare_archive() -> None:
    from curate.admin import backup  # noqa: F401

    line = {"id": IDS[0], "origin": "import", "who": "x", "at": "2026-01-01T00:00:00Z", "path": "library:a.png"}
    line |= {"digest": "x", "status": "labelled"}
    _files["archive"] = {
        "project.toml": TOML.encode(),
        "work/state.json": b'{"schema": 1, "tool": "0.1.0"}',
        "work/labels/000001.jsonl": json.dumps(line).encode() + b"\n",
        "work/rounds/001/round.json": b'{"round": 1}',
        "index/metadata.json": b"{}",
        "index/samples.json": json.dumps({"samples": [{"filepath": "a.png", "paths": ["library:a.png"]}]}).encode(),
    }


def _make_archive(random: Random, root: Path) -> dict[str, Any]:
    """A backup: whole, but for a member (its checksum is right again), the manifest, the tar, or the gzip."""
    outside = root.parent / "outside"
    members = dict(_files["archive"])
    where = random.choice(("member", "member", "manifest", "tar", "bytes", "extra"))
    if where == "member":
        name = random.choice(sorted(members))
        members[name] = _damaged(random, name, members[name], outside)
    manifest: dict[str, Any] = {
        "project": "plant",
        "made": "2026-01-01T00:00:00Z",
        "tool": "0.1.0",
        "schema_version": 1,
        "samples": 1,
        "roots": {"library": "/srv/library", "yolo": "data/line"},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in members.items()},
    }
    head = json.dumps(manifest).encode()
    if where == "manifest":
        head = mutate.json_text(random, head, outside)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:", format=random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for name, content in {"manifest.json": head, **members}.items():
            _add(tar, name, content)
        if where == "extra":
            _add_odd(random, tar, outside)
    content = data.getvalue()
    if where == "tar":
        content = mutate.some_bytes(random, content, 8 * 512)
    packed = gzip.compress(content, 1, mtime=0)
    if where == "bytes":
        packed = mutate.some_bytes(random, packed, 20)
    (root / "b.tar.gz").write_bytes(packed)
    return {"where": where, "data": {"library": "elsewhere"} if random.random() < 0.2 else {}}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _add_odd(random: Random, tar: tarfile.TarFile, outside: Path) -> None:
    """A member that no backup of ours has."""
    name = random.choice(
        ("work/x", "project.toml", "work/labels/000001.jsonl", "index/samples.json", "../x", "work/labels")
    )
    match random.randrange(5):
        case 0:
            _add(tar, random.choice([name for name in mutate.names(outside) if name and "\ud800" not in name]), b"x")
        case 1:
            _add(tar, name, b"again")
        case 2:
            info = tarfile.TarInfo(name)
            info.type = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
            info.linkname = random.choice(("../../outside/passwd.jpg", "/etc/passwd", "project.toml", "x", "..", "."))
            tar.addfile(info)
            _add(tar, f"{name}/through", b"x")
        case 3:
            info = tarfile.TarInfo(name)
            info.type = random.choice((tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, b"Z"))
            tar.addfile(info)
        case _:
            _add(tar, name, bytes(random.choice((1 << 20, 48 << 20))))


def _check_archive(case: dict[str, Any], root: Path) -> str:
    """All of a restore but the loading of its index into a database."""
    from curate.admin import backup

    folder = root / "to" / "plant"
    with pytest.MonkeyPatch.context() as patch:
        more = _without_database(patch)
        try:
            backup.restore(root / "b.tar.gz", folder, case["data"], False, **more)
        finally:
            rest = sorted(path.name for path in root.iterdir() if path.name not in ("to", "b.tar.gz"))
            rest += [path.name for path in (root / "to").glob("*") if path.name != "plant"]
            if rest:
                raise Fault(WRONG, f"restore leaves {rest}")
    known = {"project.toml", "work", "index"}
    strange = {path.relative_to(folder).parts[0] for path in folder.rglob("*")} - known
    if strange or any(path.is_symlink() for path in folder.rglob("*")):
        raise Fault(WRONG, f"a restored project holds {sorted(strange) or 'a link'}")
    return OK


def _without_database(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Restores take an empty index for good; a database would make this a hundred times slower."""
    from curate.admin import backup

    index = SimpleNamespace(dataset_exists=lambda name: False), SimpleNamespace(count=lambda field: 1)
    patch.setattr(backup, "_loaded_index", lambda *given: contextlib.nullcontext(index))
    patch.setattr(backup, "_settle", lambda *given: [])
    patch.setattr(backup, "_give_name", lambda *given: None)
    return {"trust": True}


# --- the label log and splits -----------------------------------------------------------------------------------------


def _prepare_log() -> None:
    from curate.data import Label, make_defect
    from curate.labels.log import Entry, LabelLog
    from curate.labels.splits import Decisions

    crack = Label("labelled", (make_defect("crack", (1, 2, 3, 4)),))
    painted = Label("labelled", (make_defect("hole", (1, 2, 2, 2), "04"),), ("crack",))
    with tempfile.TemporaryDirectory() as folder:
        book = LabelLog(Path(folder) / "labels", ("crack", "hole"))
        for number, label in enumerate((crack, painted, Label("labelled"), crack)):
            book.append(Entry(IDS[number], label, "import", "coco", "2026-01-01T00:00:00Z", f"library:{number}.png"))
        book.append(Entry(IDS[0], painted, "import", "coco", "2026-01-01T00:00:00Z", "library:copy.png"))
        book.rename({"crack": "fissure"}, "me", "rename", "c1")
        others = {"label-studio: ann": crack.to_json()}
        disputed = Label("disputed", crack.defects, (), "annotators-disagree: crack")
        extra = {
            "others": others,
            "lead_time": 3.5,
            "task": "1@x",
            "of": {"7@x": ["2026-01-01T00:00:00Z", crack.digest]},
        }
        book.append(Entry(IDS[1], disputed, "label-studio", "consensus", "2026-01-02T00:00:00Z", extra=extra))
        book.close()
        decisions = Decisions(Path(folder) / "splits")
        decisions.assign({"library/a": "train", "library/b": "test", "library/c": "val"})
        decisions.join([("library/a", "library/b")])
        _files["log"] = _below(Path(folder))


def _check_log(case: Any, root: Path) -> str:
    from curate.labels.log import LabelLog, lead_times
    from curate.labels.splits import Decisions
    from labeling.consensus import LoggedAnnotations

    book = LabelLog(root / "labels", ("fissure", "hole"))
    for id in list(book.ids()):
        state = book.state(id)
        json.dumps(state.label.to_json(), allow_nan=False)
        book.key(id), book.versions(id), book.import_state(id), book.import_paths(id), book.person_decided(id)
    for entry in book.entries():
        list(entry.others)
    LoggedAnnotations.of(book)
    list(lead_times(root / "labels"))
    decisions = Decisions(root / "splits")
    for name in ("library/a", "library/b", "library/c", "x"):
        if decisions.split(name) not in (None, "train", "val", "test"):
            raise Fault(WRONG, f"a split that is none: {decisions.split(name)}")
    return OK


# --- rounds -----------------------------------------------------------------------------------------------------------


def _prepare_rounds() -> None:
    import numpy as np

    from curate.index import rounds

    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            about = {"round": number, "made_at": "2026-01-01T00:00:00Z", "pushed": number == 1, "withdrawn": [IDS[3]]}
            rows = [
                {"id": id, "path": f"library:{id[:4]}.png", "slot": "audit", "reason": "r", "rank": rank, "score": 0.5}
                | {"like": None, "group": "g", "stratum": "s", "tile": -1, "propensity": 0.1, "seconds": 9.0}
                | {"predicted": ["crack"]}
                for rank, id in enumerate(IDS)
            ]
            chances = {"id": IDS, rounds.class_column("crack"): np.linspace(0, 1, 4).astype(np.float32)}
            rounds.write(Path(folder), about, rows, chances)
        _files["rounds"] = _below(Path(folder))


def _check_rounds(case: Any, root: Path) -> str:
    from curate.index import rounds

    found = rounds.every(root)
    for one in found:
        assert one.name == f"round {one.number:03d}"
        assert one.touched >= one.pushed
        if not all(isinstance(id, str) for id in one.withdrawn):
            raise Fault(WRONG, f"withdrawn: {one.withdrawn}")
        for row in one.picks():
            # What the index, push and audit take from a pick.
            if not isinstance(row["id"], str) or not isinstance(row["slot"], str | None) or row["score"] == "":
                raise Fault(WRONG, f"a pick without id: {row}")
            row["rank"], row["reason"], row["path"], row["propensity"], row["predicted"], row["seconds"]
        ids, chances, names = one.predicted()
        if chances.shape != (len(ids), len(names)):
            raise Fault(WRONG, f"{len(ids)} ids, {len(names)} classes, {chances.shape}")
    if found:
        rounds.find(root, None)
    return OK


# --- tables -----------------------------------------------------------------------------------------------------------


def _prepare_tables() -> None:
    import numpy as np

    from curate.tables import Table
    from curate.vectors.store import Vectors

    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores"
        columns = {"probability": "float16[2]", "uncertainty": "float32"}
        table = Table.create(scores / "model-abc.lance", columns, {"classes": '["crack", "hole"]', "model": "abc"})
        for begin in (0, 2):
            ids = IDS[begin : begin + 2]
            table.append({"id": ids, "probability": np.full((2, 2), 0.5), "uncertainty": [0.1, 0.2]})
        made = Vectors.create(Path(folder) / "vectors" / "texture-abc.lance", "abc", 4)
        boxes = [np.array([[0, 0, 16, 12], [0, 0, 8, 8]], np.int32)] * 4
        made.append(IDS, boxes, [np.full((2, 4), 0.5, np.float16)] * 4)
        _files["tables"] = _below(Path(folder))


def _make_tables(random: Random, root: Path) -> list[str]:
    """Damaged bytes; or, whole as Lance sees it, a table with other columns or texts than ours."""
    if random.random() < 0.85:
        return _make_files("tables", random, root)
    import lance
    import pyarrow as pa

    _write(root, _files["tables"])
    kinds = (pa.string(), pa.int64(), pa.float32(), pa.list_(pa.float16(), 3), pa.list_(pa.float32()), pa.bool_())
    names = ["id", "tile", "x", "y", "w", "h", "vector", "probability", "uncertainty"]
    fields = [pa.field(name, random.choice(kinds)) for name in names if random.random() < 0.8]
    about = {
        key: random.choice(("abc", "4", "x", "[", "[1]", "{}", '["crack"]', "-1")) for key in ("key", "dim", "classes")
    }
    schema = pa.schema(fields or [pa.field("x", pa.int64())], {k: v for k, v in about.items() if random.random() < 0.7})
    kept = "vectors/texture-zzz.lance" if random.random() < 0.5 else "scores/model-zzz.lance"
    row = {field.name: _cell(field.type) for field in schema}
    rows = pa.Table.from_pylist([row] * random.choice((0, 1, 3)), schema=schema)
    lance.write_dataset(rows, str(root / kept), schema=schema)
    return [kept, str(schema)]


def _cell(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        return [0.5, 0.5, 0.5]
    return IDS[0] if pa.types.is_string(kind) else True if pa.types.is_boolean(kind) else 1


def _check_tables(case: Any, root: Path) -> str:
    from curate import tables
    from curate.vectors import store as vectors

    table = tables.latest(root / "scores")
    if table is not None:
        ids = list(table.ids())
        table.metadata, len(table)
        _scores(table, ids)
    tables.latest(root / "scores", "model")
    found = vectors.open_latest(root)
    ids = found.ids()
    if found.whole(ids).shape != (len(ids), found.dim):
        raise Fault(WRONG, "vectors of another length")
    for tiles in found.tiles(ids[:1]):
        assert tiles.boxes.shape == (len(tiles), 4)
    if ids:
        found.windows(ids[0])
    return OK


def _scores(table: Any, ids: list[str]) -> None:
    """What `curate select` takes from a model's table."""
    read = table.read(ids, ["probability", "uncertainty"])
    if len(read["probability"]) != len(ids):
        raise Fault(WRONG, f"{len(read['probability'])} rows of {len(ids)}")
    sum(len(chunk["uncertainty"]) for chunk in table.chunks(["uncertainty"]))


# --- models -----------------------------------------------------------------------------------------------------------


def _prepare_models() -> None:
    import torch

    from train import architectures, checkpoint, recipe, store
    from train.predict.predictor import load_predictor  # noqa: F401 - imported before the cases fork

    torch.set_num_threads(1)
    made = recipe.validate(
        {
            "task": "classification",
            "model": {"architecture": "simple-cnn", "weights": "none", "options": {"widths": [4]}},
            "input": {"height": 32, "width": 32},
            "loss": [{"name": "auto"}],
        }
    )
    module = architectures.build(made.task, made.model, made.input.channels, 2)
    manifest = {"key": "abcdef", "classes": ["crack", "hole"], "outputs": ["crack", "hole"], "single": False}
    manifest |= {"recipe": made.model_dump(mode="json"), "made": "2026-01-01T00:00:00Z", "versions": {"torch": "2"}}
    manifest |= {
        "task": made.task,
        "history": [],
        "skipped": {},
        "seconds": 1.5,
        "best": {"epoch": 0, "train_loss": 0.5},
    }
    manifest |= {"data": {"train": 2, "val": 1, "by_class": {"crack": 1}}, "images": {"train": ["a"], "val": ["b"]}}
    val = {"images": 3, "found": 2, "without": 4, "false_alarms": 1}
    manifest["decisions"] = {"crack": {"threshold": 0.3, "min_area": None, "target": 0.9, "val": val}}
    evaluated = {"overall": {"macro_f1": {"value": 0.5}, "clean_false_alarms": {"value": None}}}
    forced = {"older": {"overruled": "it finds less", "why": "x", "when": "2026-01-01T00:00:00Z"}}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "work" / "models"
        checkpoint.save(home / "abcdef" / store.WEIGHTS, module.state_dict())
        (home / "abcdef" / store.MANIFEST).write_text(json.dumps(manifest))
        production = {"model": "abcdef", "before": ["older"], "forced": forced}
        (home / "production.json").write_text(json.dumps(production))
        evaluation = Path(folder) / "work" / "evaluations" / "abcdef" / "test-1"
        evaluation.mkdir(parents=True)
        (evaluation / "manifest.json").write_text(json.dumps({"made": "2026-01-01T00:00:00Z"}))
        (evaluation / "figures.json").write_text(json.dumps(evaluated))
        (home / "candidate.json").write_text(json.dumps({"model": "abcdef", "before": []}))
        _files["models"] = _below(Path(folder))


def _check_models(case: Any, root: Path) -> str:
    from train import store
    from train.predict.predictor import load_predictor

    project = _project(root)
    assert all(one.key and one.folder.parent == store.models_folder(project) for one in store.all_models(project))
    for one in store.all_models(project):
        store.metrics_on_test(project, one.key, ("macro_f1", "clean_false_alarms"))
    store.current(project)
    with contextlib.suppress(store.CurateError):
        store.rollback(project)
    predictor = load_predictor(project, None, "cpu")
    seen = predictor.predict_image(fakes.steel(40, 33))
    if len(seen.probability) != len(predictor.classes):
        raise Fault(WRONG, f"{len(seen.probability)} probabilities of {len(predictor.classes)} classes")
    predictor.prediction(seen)
    return OK


TARGETS = [
    Target("config", _maker("config"), _check_config, _prepare_config),
    Target("archive", _make_archive, _check_archive, _prepare_archive),
    Target("log", _maker("log"), _check_log, _prepare_log),
    Target("rounds", _maker("rounds"), _check_rounds, _prepare_rounds, 0.5),
    Target("tables", _make_tables, _check_tables, _prepare_tables, 0.3),
    Target("models", _maker("models"), _check_models, _prepare_models, 0.5),
]
