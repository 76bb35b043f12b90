"""`curate synth fit` and `generate`: batches of synthetic images with their masks, in `work/synth/<key>/`.

`images/`, `masks/<class>/`, `manifest.parquet` (a `SyntheticImage` a row) and `manifest.json`. A batch in the making
lies in `.<key>.making/`: an image is there whole or not at all, and what is there is not made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from curate import __version__, files
from curate.catalogue import Catalogue
from curate.errors import CurateError, LabelProblem, unknown
from curate.hashing import key_of
from curate.index.dataset import Index, chunks
from curate.masks.shapes import grey_file
from curate.paths import safe_join
from curate.project import Project
from synth import masks
from synth.masks import Place
from synth.nouns import CandidateImage, Mask, MaskBank, Pixels, Scene, Site, SyntheticImage
from train.data.pixels import read, with_channels

MOST_PIXELS = 1 << 30  # of a picture of a batch, which may come from another machine
STEP = 1  # raise it when the same request and bank give another batch than before
FIT = Catalogue("synth.synthesisers", "synthesiser", "fit")
MAKE = Catalogue("synth.synthesisers", "synthesiser", "generate")
HANDED = ("device", "progress", "seed")  # what `fit` and `generate` are given by the house, not by `--set`
MANIFEST, ROWS, TABLE = "manifest.json", "rows.jsonl", "manifest.parquet"
ABOUT = ("project", "synthesiser", "counts", "wish", "blocked", "groups")  # what a batch's manifest says at least
WINDOW, LEARNT = 128, 64  # pixels of what is copied and of what is learnt; or as its own WINDOW says
EXAMPLES = 2000  # windows that a network learns from
TOGETHER = 16  # scenes that a synthesiser gets at once
RATIO = 1.0

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class GenerateRequest:
    """Request for a batch: the classes (all that have masks), how many of each (or how many times the real ones), and
    the values that are set by hand instead of drawn as train has them."""

    classes: tuple[str, ...] = ()
    count: int | None = None
    ratio: float | None = None
    seed: int = 0
    window: int | None = None
    area: float | None = None
    aspect: float | None = None
    place: Place | None = None
    severity: str | None = None
    strength: float = 1.0

    @property
    def by_hand(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("area", "aspect", "place", "severity", "strength")}


@dataclass(frozen=True)
class FittedSynthesiser:
    """A synthesiser that has learnt what it needs."""

    name: str
    key: str
    folder: Path
    manifest: dict[str, Any]
    fresh: bool = False


@dataclass(frozen=True)
class SyntheticBatch:
    """A finished batch."""

    folder: Path
    manifest: dict[str, Any]
    fresh: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """The folder's name, whatever a manifest from elsewhere says: paths are made of it."""
        return self.folder.name

    @property
    def again(self) -> str:
        return f"Generate it again, after: curate synth drop {self.key[:8]} --files"

    def made(self) -> list[SyntheticImage]:
        import pyarrow.parquet

        parquet: Any = pyarrow.parquet
        try:
            rows = parquet.read_table(self.folder / TABLE).to_pylist()
            return [SyntheticImage(**row | {"window": tuple(row["window"])}) for row in rows]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CurateError(f"{self.folder / TABLE} is damaged ({error}). {self.again}") from None


def home(project: Project) -> Path:
    return project.work / "synth"


def plain(name: str) -> str:
    """The synthesiser's name as its file has it: `sd-inpaint` is as good as `sd_inpaint`."""
    return name.replace("-", "_")


def options_of(catalogue: Catalogue, name: str, given: Sequence[str]) -> dict[str, Any]:
    """`--set key=value`, checked."""
    own = [key for key in catalogue.options(plain(name)) if key not in HANDED]
    for text in given:
        if (key := text.partition("=")[0]) in HANDED:
            raise unknown(f"option of synthesiser {name}", key, own)
    return catalogue.parse(plain(name), given)


# --- fit ------------------------------------------------------------------------------------------------------------


def learns(name: str) -> bool:
    return bool(getattr(FIT.load(name), "LEARNS", True))


def window_of(name: str, wanted: int | None) -> int:
    size = wanted or int(getattr(FIT.load(name), "WINDOW", LEARNT if learns(name) else WINDOW))
    if size < 4 * masks.RIM:
        raise CurateError(f"a window of {size} pixels is too small; allowed: {4 * masks.RIM} or more")
    return size


def fit(
    project: Project,
    name: str,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress = silent,
    *,
    window: int | None = None,
    seed: int = 0,
) -> FittedSynthesiser:
    """Let a synthesiser learn from the train split, or find that it has; what a kill left goes on."""
    name, given = plain(name), dict(options or {})
    FIT.check(name, given)
    bank = masks.bank(Index(project), progress)
    if not bank.donors:
        raise CurateError(
            "no class has a defect with a mask in the train split: nothing to learn from; draw masks first"
        )
    return _fit(project, bank, name, given, device, progress, window_of(name, window), seed)


def _fit(
    project: Project,
    bank: MaskBank,
    name: str,
    options: Mapping[str, Any],
    device: str,
    progress: Progress,
    window: int,
    seed: int,
) -> FittedSynthesiser:
    size = window if learns(name) else None  # what learns nothing is the same for every window
    values = {"synthesiser": name, "options": dict(options), "window": size, "seed": seed, "bank": bank.digest}
    key = f"{name}-{key_of([values, bank.classes, FIT.load(name).STEP, masks.STEP, STEP])}"
    target = home(project) / "models" / key
    if not (target / MANIFEST).is_file():
        with files.writer_lock(home(project), "curate synth fit"):
            _learn(target, bank, values | {"classes": list(bank.classes)}, device, progress)
        return FittedSynthesiser(name, key, target, _json(target / MANIFEST), True)
    return FittedSynthesiser(name, key, target, _json(target / MANIFEST))


def _learn(target: Path, bank: MaskBank, values: dict[str, Any], device: str, progress: Progress) -> None:
    from curate.devices import device_of

    name, size, begun = values["synthesiser"], values["window"], time.perf_counter()
    aside = target.with_name(f".{target.name}.fitting")  # outlives a kill
    aside.mkdir(parents=True, exist_ok=True)
    shown = masks.examples(bank, size, np.random.default_rng(values["seed"]), EXAMPLES) if size else []
    device = device_of(device) if size else "cpu"
    about = FIT.call(name)(
        shown, bank.classes, aside, progress=progress, device=device, seed=values["seed"], **values["options"]
    )
    groups = sorted({window.group for window in shown})
    seconds = {"seconds": round(time.perf_counter() - begun, 1), "device": device, "groups": groups}
    files.write_json(aside / MANIFEST, values | seconds | {"learnt": about} | _versions())
    aside.rename(target)
    files.sync_folder(target.parent)


def fits(project: Project) -> list[FittedSynthesiser]:
    """All that were fitted, the newest first."""
    paths = (home(project) / "models").glob(f"[!.]*/{MANIFEST}")
    manifests = [(file.parent, _json(file)) for file in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)]
    return [FittedSynthesiser(about["synthesiser"], folder.name, folder, about) for folder, about in manifests]


def _fitted(project: Project, bank: MaskBank, name: str, wanted: str | None, window: int | None) -> FittedSynthesiser:
    """The newest that learnt from the train split as it is now; what need not learn is there at once."""
    if wanted and not learns(name):
        raise CurateError(f"{name} learns nothing, so there is no '{wanted}' to choose: leave --fitted out")
    if not learns(name):
        return _fit(project, bank, name, {}, "cpu", silent, window_of(name, window), 0)
    mine = [model for model in fits(project) if model.name == name and (wanted is None or model.key.startswith(wanted))]
    fresh = [model for model in mine if model.manifest["bank"] == bank.digest]
    fitting = [model for model in fresh if window in (None, model.manifest["window"])]
    if fitting:
        return fitting[0]
    how = f"Run: curate synth fit {name.replace('_', '-')}"
    if fresh:
        sizes = sorted({model.manifest["window"] for model in fresh})
        raise CurateError(f"{name} was fitted to windows of {sizes}, not {window}. {how} --window {window}")
    if mine:
        raise CurateError(f"labels or splits of train changed since {name} was fitted. {how}")
    raise CurateError(f"synthesiser {wanted or name} is not fitted yet. {how}")


# --- generate -------------------------------------------------------------------------------------------------------


def generate(
    project: Project,
    name: str,
    request: GenerateRequest,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress = silent,
    *,
    fitted: str | None = None,
) -> SyntheticBatch:
    """Make a batch, or find that it is made; the same request and train split give the same images on a CPU."""
    name, given = plain(name), dict(options or {})
    MAKE.check(name, given)
    bank = masks.bank(Index(project), progress)
    counts = counts_of(bank, request)
    model = _fitted(project, bank, name, fitted, request.window)
    window = model.manifest["window"] or window_of(name, request.window)
    values = {"wish": asdict(request) | {"window": window}, "counts": counts, "options": given, "fitted": model.key}
    key = key_of([values, bank.digest, MAKE.load(name).STEP, masks.STEP, STEP])
    target = home(project) / key
    with files.writer_lock(home(project), "curate synth generate"):
        if (target / MANIFEST).is_file():
            return _renewed(SyntheticBatch(target, _json(target / MANIFEST)), bank)
        about = {"key": key, "project": project.name, "synthesiser": name, "bank": bank.digest} | values
        _make(target, bank, about, model, device, progress)
    return SyntheticBatch(target, _json(target / MANIFEST), True)


def counts_of(bank: MaskBank, request: GenerateRequest) -> dict[str, int]:
    """Images of each class. Raises CurateError where a class has no mask to work with."""
    if request.count is not None and request.ratio is not None:
        raise CurateError("give a count or a ratio, not both")
    if (request.count is not None and request.count < 1) or (
        request.ratio is not None and not 0 < request.ratio <= 100
    ):
        raise CurateError(
            f"count {request.count} or ratio {request.ratio} makes nothing; allowed: a count from 1, a ratio to 100"
        )
    if not 0 < request.strength <= 1:
        raise CurateError(f"strength {request.strength:g} does not exist; allowed: above 0, up to 1")
    for name in request.classes:
        masks.require(bank, name)
    names = request.classes or tuple(name for name in bank.classes if bank.of(name))
    if not names:
        raise CurateError("no class has a defect with a mask in the train split: draw masks first")
    ratio = RATIO if request.ratio is None else request.ratio
    return {name: request.count or max(1, round(ratio * len(bank.of(name)))) for name in names}


def donors_of(bank: MaskBank, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Count the real defects of a class (of the requested severity) and those that can be used; say why not all."""
    donors = [donor for donor in bank.of(name) if request["severity"] in (None, donor.severity)]
    if request["area"] is not None:  # by hand: each is shrunk as far as it takes
        return {"there": len(donors), "used": len(donors), "left_out": None}
    used = sum(masks.holds(request["window"], donor) for donor in donors)
    return {"there": len(donors), "used": used, "left_out": masks.left_out(donors, bank.grounds, request["window"])}


def _renewed(batch: SyntheticBatch, bank: MaskBank) -> SyntheticBatch:
    """The same bank as then: it holds none of those that are in val or test today, so the batch knows none of them."""
    blocked = blocked_of(bank)
    if batch.manifest["blocked"] == blocked:
        return batch
    files.write_json(batch.folder / MANIFEST, batch.manifest | {"blocked": blocked})
    return SyntheticBatch(batch.folder, _json(batch.folder / MANIFEST))


def blocked_of(bank: MaskBank) -> dict[str, list[str]]:
    return {"ids": sorted(bank.blocked_ids), "groups": sorted(bank.blocked_groups)}


def _groups(bank: MaskBank) -> list[str]:
    """All groups that the synthesiser may have seen: should one go to val later, the batch must not be used."""
    return sorted({donor.group for donor in bank.donors} | {ground.group for ground in bank.grounds})


def _make(
    target: Path, bank: MaskBank, about: dict[str, Any], model: FittedSynthesiser, device: str, progress: Progress
) -> None:
    from curate.devices import device_of

    begun = time.perf_counter()
    device = device_of(device) if model.manifest["window"] else "cpu"
    aside = target.with_name(f".{target.name}.making")  # outlives a kill
    rows = _Rows(aside)
    todo = [job for job in _asked(about["counts"], about["wish"]["seed"]) if job[0] not in rows.known]
    total = sum(about["counts"].values())
    progress("synthesise", len(rows.known), total)
    for some in chunks(todo, TOGETHER):
        _add(rows, bank, some, about, model, device)
        progress("synthesise", len(some), total)
    images = [
        SyntheticImage(**row["made"] | {"window": tuple(row["made"]["window"])}) for row in rows.all() if "made" in row
    ]
    skipped = [row["skipped"] for row in rows.all() if "skipped" in row]
    if not images:
        files.remove(aside)
        raise CurateError(skipped[0])
    _write_table(aside / TABLE, images)
    donors = {name: donors_of(bank, name, about["wish"]) for name in about["counts"]}
    notes = [*bank.notes, *([f"{len(skipped)} could not be placed; the first: {skipped[0]}"] if skipped else [])]
    notes += [f"{name}: {count['left_out']}" for name, count in donors.items() if count["left_out"]]
    blocked = {
        "blocked": blocked_of(bank),
        "groups": _groups(bank),
        "learnt": model.manifest["groups"],
        "images": len(images),
        "donors": donors,
        "skipped": len(skipped),
        "notes": notes,
    }
    seconds = {"device": device, "seconds": round(time.perf_counter() - begun, 1)}
    files.write_json(aside / MANIFEST, about | blocked | seconds | _versions())
    aside.rename(target)
    files.sync_folder(target.parent)


def _asked(counts: Mapping[str, int], seed: int) -> list[tuple[int, str, int]]:
    """Number, class and seed of every image. More of a class leaves the first ones as they were."""
    wanted = [(name, number) for name, count in counts.items() for number in range(count)]
    return [(place, name, _seed(seed, name, number)) for place, (name, number) in enumerate(wanted)]


def _seed(seed: int, name: str, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}/{number}".encode(), digest_size=4).digest()) >> 1


class _Rows:
    """Finished images of a batch in the making: a line an image, written after its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.rglob(".*.part"):
            files.remove(left)
        self._lines = {row["number"]: row for row in self._read()}

    @property
    def known(self) -> set[int]:
        return set(self._lines)

    def all(self) -> list[dict[str, Any]]:
        return [self._lines[number] for number in sorted(self._lines)]

    def add(self, row: dict[str, Any]) -> None:
        file = self.folder / ROWS
        with files.explain_full_disk(file), file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self._lines[row["number"]] = row

    def _read(self) -> Iterator[dict[str, Any]]:
        """Whole lines; one that a kill cut off is taken away, so that the next begins on a line of its own."""
        file = self.folder / ROWS
        text = file.read_bytes() if file.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            with files.written_aside(file) as aside:
                aside.write_bytes(whole)
        return (json.loads(line) for line in whole.splitlines())


def _add(
    rows: _Rows,
    bank: MaskBank,
    asked: Sequence[tuple[int, str, int]],
    about: Mapping[str, Any],
    model: FittedSynthesiser,
    device: str,
) -> None:
    placed: list[tuple[int, Scene, Site]] = []
    hand = {name: about["wish"][name] for name in GenerateRequest().by_hand}
    for number, name, seed in asked:
        try:
            placed.append((number, *masks.scene(bank, name, about["wish"]["window"], seed, **hand)))
        except CurateError as problem:
            rows.add({"number": number, "skipped": str(problem)})
    scenes = [scene for _, scene, _ in placed]
    painted = MAKE.call(model.name)(scenes, model.folder, device=device, **about["options"]) if scenes else []
    for (number, scene, site), window in zip(placed, painted, strict=True):
        image = _save(rows.folder, number, scene, site, put_back(bank, site, window), model.key)
        rows.add({"number": number, "made": asdict(image)})


def put_back(bank: MaskBank, site: Site, window: Pixels) -> Pixels:
    """The whole ground with this window in its place; all other pixels are the ground's own."""
    left, top, width, height = site.window
    whole = with_channels(masks.pixels_of(site.ground.item, bank.max_pixels), bank.channels).copy()
    whole[top : top + height, left : left + width] = window
    return whole


def whole_mask(site: Site, mask: Mask) -> Mask:
    """A window's mask in the size of the ground."""
    left, top, width, height = site.window
    whole = np.zeros((site.ground.item.height, site.ground.item.width), bool)
    whole[top : top + height, left : left + width] = mask
    return whole


def _save(folder: Path, number: int, scene: Scene, site: Site, pixels: Pixels, synthesiser: str) -> SyntheticImage:
    file, mask_file = f"images/{number:06d}.png", f"masks/{folder_of(scene.name)}/{number:06d}.png"
    content = _png(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    _write(folder / mask_file, _png(whole_mask(site, scene.mask).astype(np.uint8) * 255))
    _write(folder / file, content)
    return SyntheticImage(
        hashlib.sha256(content).hexdigest(),
        file,
        mask_file,
        scene.name,
        site.ground.id,
        site.ground.group,
        site.donor.key,
        site.donor.group,
        scene.seed,
        synthesiser,
        site.window,
        site.area,
        site.severity,
    )


def folder_of(name: str) -> str:
    """A class's name as that of a folder."""
    plain = "".join(sign if sign.isalnum() or sign in "-_ " else "_" for sign in name).strip()
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _png(pixels: Pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all. Not synced: what a power cut spoils, the checksum in the manifest tells."""
    aside = file.with_name(f".{file.name}.part")
    with files.explain_full_disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(file)


def _write_table(file: Path, images: Sequence[SyntheticImage]) -> None:
    import pyarrow
    import pyarrow.parquet

    parquet: Any = pyarrow.parquet
    table = pyarrow.Table.from_pylist([asdict(image) | {"window": list(image.window)} for image in images])
    with files.written_aside(file) as aside:
        parquet.write_table(table, aside, compression="zstd")


def _versions() -> dict[str, Any]:
    names = ("numpy", "opencv-python-headless", "pillow", "torch")
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in names} | {"curate": __version__},
    }


# --- finished batches -----------------------------------------------------------------------------------------------


def opened(project: Project, key: str) -> SyntheticBatch:
    """The batch of this key; its first characters will do."""
    known = {batch.key: batch for batch in every(project)}
    fitting = [match for match in known if key and match.startswith(key)]
    if len(fitting) == 1:
        return known[fitting[0]]
    if fitting:
        raise CurateError(f"'{key}' fits {len(fitting)} batches: {', '.join(fitting)}; give more of its characters")
    raise unknown("batch", key, known, "Make one: curate synth generate")


def every(project: Project) -> list[SyntheticBatch]:
    """All finished batches, the newest first."""
    batches = [SyntheticBatch(file.parent, _json(file, ABOUT)) for file in home(project).glob(f"[!.]*/{MANIFEST}")]
    return sorted(batches, key=lambda batch: (str(batch.manifest.get("made")), batch.key), reverse=True)


def looks(batch: SyntheticBatch) -> Iterator[CandidateImage]:
    """Every image of a batch with its mask, as gates see them."""
    for image in batch.made():
        pixels, mask = both_of(batch, image)
        yield CandidateImage(image.id, image.name, pixels, mask, image.window, image.area)


def both_of(batch: SyntheticBatch, image: SyntheticImage) -> tuple[Pixels, Mask]:
    pixels, mask = pixels_of(batch, image), mask_of(batch, image)
    if pixels.shape[:2] != mask.shape:
        raise CurateError(f"{batch.folder / image.mask_file} is not of its image's size. {batch.again}")
    return pixels, mask


def pixels_of(batch: SyntheticBatch, image: SyntheticImage) -> Pixels:
    """Raises CurateError where the file is not the one that was made."""
    try:
        pixels = read(image.id, safe_join(batch.folder, image.file), MOST_PIXELS)
    except LabelProblem as problem:
        raise CurateError(f"{batch.folder / image.file}: {problem}".replace("Run: curate index", batch.again)) from None
    return with_channels(pixels, 3 if pixels.ndim == 3 and pixels.shape[2] == 3 else 1)


def mask_of(batch: SyntheticBatch, image: SyntheticImage) -> Mask:
    try:
        return np.asarray(grey_file(safe_join(batch.folder, image.mask_file), MOST_PIXELS) > 127, bool)
    except (OSError, LabelProblem) as problem:
        raise CurateError(f"{batch.folder / image.mask_file} cannot be read ({problem}). {batch.again}") from None


def _json(file: Path, names: Collection[str] = ()) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= set(names):
        raise CurateError(f"{file} is damaged: remove {file.parent}, and make it again")
    return content
