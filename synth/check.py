"""`curate synth check`: every synthetic image compared with the real defects of train; a refused one has a reason.

    report = check(project, key)                                       a batch of the project
    found = inspected(looks, standard_of(bank, encoder), segmenter)    without a project: what the trial does

Decisions know the train split alone. Real images of val appear in one figure only, made after all decisions: how far
real defects of val are from those of train, beside which the distance of synthetic ones can be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curate import files
from curate.embed._base import Encoder, prepare_image, whole_image
from curate.errors import CurateError, unknown
from curate.index.dataset import Index
from curate.project import Project
from synth import contact_sheet, gates, generate, masks
from synth.gates import Floats, Limits, ValueRange
from synth.nouns import CandidateImage, Donor, Mask, MaskBank, Pixels
from train.data.dataset import masks_of
from train.data.pixels import with_channels
from train.predict.predictor import Predictor

STEP = 1  # raise it when the same images come to another end
CHECKED, SHEET, REPORT = "checked.parquet", "sheet.png", "checked.json"
WITHOUT = "without"  # under which the table says which gates were left out
GATES = ("mask", "resegmentation", "copy", "nonsense", "area", "aspect", "seam", "region")
SHARES = ("precision", "recall", "density", "coverage")
SIDE = 64  # pixels of a defect's crop as the encoder sees it
REFERENCE = 30  # real defects of a class that the segmenter is tried on
ROOM = 32  # pixels around a window that the segmenter sees, too
LEAST = 8  # pixels of margin around a defect
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RealReference:
    """The real defects of train: what is usual in each class, and where they are for the encoder."""

    encoder: Encoder
    limits: Mapping[str, Limits]
    features: Mapping[str, Floats]


@dataclass(frozen=True)
class GateResult:
    """Result of the gates for one image. `reasons`: the gate's name and an explanation; without any it passed."""

    id: str
    name: str
    reasons: tuple[str, ...]
    figures: Mapping[str, float]

    @property
    def passed(self) -> bool:
        return not self.reasons


@dataclass(frozen=True)
class CheckedBatch:
    """All rows in order, and where the encoder sees the images (a row each)."""

    rows: tuple[GateResult, ...]
    features: Floats


@dataclass
class CheckReport:
    """Result of a check. `refused`: images by gate; an image may fail several."""

    key: str
    images: int
    passed: int
    refused: dict[str, int]
    classes: dict[str, dict[str, Any]]
    encoder: str
    model: str | None
    without: list[str]
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def table(self) -> list[list[str]]:
        """Each class: how far its synthetic defects lie from the real ones of train; last, how far real ones of val."""
        head = ["class", "defects", "n", "kernel distance", *SHARES]
        return [head] + [
            [name, words, str(row[kind]["n"]), *(_number(row[kind][key]) for key in ("kernel_distance", *SHARES))]
            for name, row in self.classes.items()
            for kind, words in (("made", "synthetic"), ("passed", "that passed"), ("floor", "real val"))
        ]

    def to_json(self) -> dict[str, Any]:
        return gates.plain(asdict(self))


def check(
    project: Project,
    key: str,
    *,
    encoder: str = gates.ENCODER,
    options: Mapping[str, Any] | None = None,
    model: str | None = None,
    without: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = lambda stage, done, total: None,
) -> CheckReport:
    """Judge a batch; writes `checked.parquet`, `checked.json` and `sheet.png` beside it."""
    _known(without)
    batch = generate.opened(project, key)
    index = Index(project)
    bank = masks.bank(index)
    for name in {image.name for image in batch.made()} - set(bank.classes):
        raise unknown("class", name, bank.classes, f"Batch {batch.key} is of other classes")
    segmenter = None if "resegmentation" in without else segmenter_of(index, bank, model, device)
    standard = standard_of(bank, encoder_of(project, encoder, options, device))
    looks = generate.looks(batch)
    checked = inspected(looks, standard, segmenter, without, progress)
    _write_rows(batch.folder / CHECKED, checked.rows, without)
    _write_sheet(batch.folder / SHEET, bank, generate.looks(batch), checked.rows, f"batch {batch.key}")
    report = _report(batch.key, checked, standard, segmenter, without)
    report.files = {"checked": str(batch.folder / CHECKED), "sheet": str(batch.folder / SHEET)}
    if segmenter:
        _add_reference(report, bank, segmenter)
    _add_floor(report, index, bank, standard)  # after every decision: val may not take part in one
    files.write_json(batch.folder / REPORT, report.to_json())
    return report


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"


def _known(without: Sequence[str]) -> None:
    for name in without:
        if name not in GATES:
            raise unknown("gate", name, GATES)


# --- the standard ---------------------------------------------------------------------------------------------------


def encoder_of(project: Project, name: str, options: Mapping[str, Any] | None, device: str) -> Encoder:
    """Return the encoder of that name; `model` is the project's own."""
    from curate import embed

    name = embed.plain(name)
    if name != "model":
        return embed.build(name, options)
    from train.predict import encoder as trained

    return embed.build(name, options, handle=trained.current_encoder(project, device))


def segmenter_of(index: Index, bank: MaskBank, model: str | None, device: str) -> Predictor:
    """The project's newest segmenter, or the one that is wanted; it must have learnt from train alone."""
    from train import store
    from train.predict.predictor import load_predictor

    project = index.project
    models = [trained for trained in store.all_models(project) if trained.manifest["task"] == "segmentation"]
    if not models:
        raise CurateError(
            "re-segmentation needs a model of this project. Train one: curate train --task segmentation; "
            "or leave that gate out: --without resegmentation"
        )
    key = store.find(project, model).key if model else models[0].key
    manifest = store.find(project, key).manifest
    if manifest["task"] != "segmentation":
        raise CurateError(f"model {key} finds no pixels; allowed: {', '.join(trained.key for trained in models)}")
    if leaked := _leaked(index, bank, manifest):
        raise CurateError(f"model {key} learnt from {len(leaked)} images of val or test: train again: curate train")
    return load_predictor(project, key, device)


def _leaked(index: Index, bank: MaskBank, manifest: Mapping[str, Any]) -> set[str]:
    """Training images of a model, pseudo-labelled ones too, that are in val or test now, or in a group of theirs."""
    groups = {id: group or id for id, group in index.rows("group")}
    learnt = {*manifest["images"]["train"], *(manifest.get("pseudo") or {"labels": ()})["labels"]}
    return {id for id in learnt if id in bank.blocked_ids or groups.get(id) in bank.blocked_groups}


def standard_of(bank: MaskBank, encoder: Encoder) -> RealReference:
    """Learn the standard from the bank's donors; a class of one group alone gets the distances of all classes."""
    features = _encoded(encoder, [(donor.pixels, donor.mask) for donor in bank.donors])
    groups, names = ([getattr(donor, field) for donor in bank.donors] for field in ("group", "name"))
    rows = {name: [row for row, other in enumerate(names) if other == name] for name in bank.classes}
    everywhere = gates.nearness(features, groups)
    limits = {}
    for name, mine in rows.items():
        near = gates.nearness(features[mine], [groups[row] for row in mine]) if mine else everywhere
        limits[name] = _limits([bank.donors[row] for row in mine], near if near.low == near.low else everywhere)
    return RealReference(encoder, limits, {name: features[mine] for name, mine in rows.items()})


def _limits(donors: Sequence[Any], near: ValueRange) -> Limits:
    of = {
        "area": [float(donor.area) for donor in donors],
        "aspect": [gates.elongation(donor.mask) for donor in donors],
        "seam": [gates.seam(donor.pixels, donor.mask) for donor in donors],
    }
    return Limits(near, **{name: gates.span(np.array(values, np.float64)) for name, values in of.items()})


def _encoded(encoder: Encoder, crops: Iterable[tuple[Pixels, Mask]]) -> Floats:
    """Encode each defect in a square of the same size."""
    arrays = []
    for pixels, mask in crops:
        crop, _ = cropped(pixels, mask)
        grey = with_channels(crop, 1)[..., 0]
        how = cv2.INTER_AREA if max(grey.shape) > SIDE else cv2.INTER_LINEAR
        square = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=how), np.uint8)
        arrays += prepare_image(encoder, square, whole_image(square))
    features = encoder.encode(arrays) if arrays else np.zeros((0, encoder.dim))
    return np.asarray(features, np.float64)


def cropped(pixels: Pixels, mask: Mask) -> tuple[Pixels, Mask]:
    """A defect with a margin of half its larger side; an image without one as it is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return pixels, mask
    longer = 1 + max(int(ends[-1] - ends[0]) for ends in (rows, columns))
    margin = max(LEAST, longer // 2)
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    place = (slice(top, int(rows[-1]) + 1 + margin), slice(left, int(columns[-1]) + 1 + margin))
    return pixels[place], mask[place]


# --- images against the standard ------------------------------------------------------------------------------------


def inspected(
    looks: Sequence[CandidateImage] | Iterable[CandidateImage],
    standard: RealReference,
    segmenter: Predictor | None,
    without: Sequence[str] = (),
    progress: Progress = lambda stage, done, total: None,
) -> CheckedBatch:
    """Measure every image, and give the reasons for refusal that follow."""
    total = len(looks) if isinstance(looks, Sequence) else 0
    names, ids, figures, features = [], [], [], []
    for look in looks:
        feature = _encoded(standard.encoder, [(look.pixels, look.mask)])[0]
        figures.append(_figures(look, feature, standard, segmenter))
        features.append(feature)
        names.append(look.name)
        ids.append(look.id)
        progress("check", 1, total)
    reasons = (
        _reasons({name: np.array([row[name] for row in figures]) for name in figures[0]}, names, standard, without)
        if figures
        else []
    )
    rows = [GateResult(*row) for row in zip(ids, names, reasons, figures, strict=True)]
    return CheckedBatch(tuple(rows), np.array(features).reshape(len(rows), -1))


def _figures(
    look: CandidateImage, feature: Floats, standard: RealReference, segmenter: Predictor | None
) -> dict[str, float]:
    real = standard.features[look.name]
    left, top, width, height = look.window
    outside = look.mask.copy()
    outside[top : top + height, left : left + width] = False
    area = int(look.mask.sum())
    steel = masks.region_of(look.pixels) if area else look.mask
    return {
        "area": float(area),
        "told": float(look.told),
        "outside": float(outside.sum()),
        "iou": _resegmented(look, segmenter) if segmenter else float("nan"),
        "near": float(gates.distances(feature[None], real).min()) if len(real) else float("nan"),
        "aspect": gates.elongation(look.mask),
        "seam": gates.seam(*cropped(look.pixels, look.mask)),
        "inside": float((look.mask & steel).sum() / area) if area else 0.0,
    }


def _resegmented(look: CandidateImage, segmenter: Predictor) -> float:
    """IoU of the label with what the segmenter finds of that class in and around the window."""
    if look.name not in segmenter.classes:
        raise CurateError(
            f"model {segmenter.key} does not know class {look.name} (it knows {', '.join(segmenter.classes)}). "
            "Train again: curate train; or leave that gate out: --without resegmentation"
        )
    left, top, width, height = look.window
    place = (slice(max(0, top - ROOM), top + height + ROOM), slice(max(0, left - ROOM), left + width + ROOM))
    p = segmenter.probabilities(with_channels(look.pixels[place], segmenter.recipe.input.channels))
    segmented = p[segmenter.classes.index(look.name)] > segmenter.decision(look.name).threshold
    return gates.iou(segmented, look.mask[place])


def _reasons(
    figures: Mapping[str, Floats], names: Sequence[str], standard: RealReference, without: Sequence[str]
) -> list[tuple[str, ...]]:
    """Each image's reasons, with the gate's name first."""
    limits = [standard.limits[name] for name in names]
    near = [limit.near for limit in limits]
    reasons = {
        "mask": gates.sound(figures["area"], figures["told"], figures["outside"]),
        "resegmentation": gates.agreed(figures["iou"]),
        "copy": gates.new(figures["near"], near),
        "nonsense": gates.likely(figures["near"], near),
        "area": gates.usual(figures["area"], [limit.area for limit in limits]),
        "aspect": gates.usual(figures["aspect"], [limit.aspect for limit in limits]),
        "seam": gates.usual(figures["seam"], [limit.seam for limit in limits]),
        "region": gates.on_steel(figures["inside"]),
    }
    return gates.gathered(
        *([f"{gate}: {words}" if words else "" for words in of] for gate, of in reasons.items() if gate not in without)
    )


# --- the batch as a whole -------------------------------------------------------------------------------------------


def _report(
    key: str, checked: CheckedBatch, standard: RealReference, segmenter: Predictor | None, without: Sequence[str]
) -> CheckReport:
    refused = by_gate(row.reasons for row in checked.rows)
    passed = np.array([row.passed for row in checked.rows], bool)
    names = np.array([row.name for row in checked.rows])
    classes = {
        name: compared(real, checked.features[names == name], checked.features[(names == name) & passed])
        for name, real in standard.features.items()
        if (names == name).any()
    }
    return CheckReport(
        key,
        len(checked.rows),
        int(passed.sum()),
        refused,
        classes,
        f"{standard.encoder.name}-{standard.encoder.key}",
        segmenter.key if segmenter else None,
        list(without),
    )


def by_gate(reasons: Iterable[Sequence[str]]) -> dict[str, int]:
    """Images that each gate refused; one may be refused by several."""
    counts = Counter(reason.partition(":")[0] for of_one in reasons for reason in of_one)
    return {gate: counts[gate] for gate in GATES if counts[gate]}


def compared(real: Floats, synthetic: Floats, passed: Floats) -> dict[str, Any]:
    """Compare a class's synthetic defects, all of them and those that passed, with the real ones of train."""
    return {"real": len(real)} | {
        kind: {"n": len(of), "kernel_distance": gates.kernel_distance(real, of)} | gates.prdc(real, of)
        for kind, of in (("made", synthetic), ("passed", passed))
    }


def _add_reference(report: CheckReport, bank: MaskBank, segmenter: Predictor) -> None:
    """Add the segmenter's IoU on real defects that it learnt from: where it is low, its gate says little."""
    for name, row in report.classes.items():
        ious = [_resegmented(_real(donor, bank), segmenter) for donor in bank.of(name)[:REFERENCE]]
        row["resegmented_real"] = float(np.median(ious))
        if row["resegmented_real"] < gates.AGREEMENT:
            share = f"IoU {row['resegmented_real']:.2f} (median)"
            report.notes.append(
                f"{name}: the segmenter outlines real defects of train with {share}, so it can confirm few synthetic "
                "ones; train a better one, or --without resegmentation (then accept wants --force)"
            )


def _real(donor: Donor, bank: MaskBank) -> CandidateImage:
    """A real defect as if it were a synthetic one."""
    pixels = with_channels(masks.pixels_of(donor.item, bank.max_pixels), bank.channels)
    (left, top), (height, width) = donor.corner, donor.mask.shape
    mask = masks_of(donor.item, [donor.name])[0].astype(bool)
    return CandidateImage(donor.key, donor.name, pixels, mask, (left, top, width, height), donor.area)


def _add_floor(report: CheckReport, index: Index, bank: MaskBank, standard: RealReference) -> None:
    """Real val against real train, by the same figures: no synthetic image can be expected to come nearer."""
    ids = [id for id, split, status in index.rows("split", "status") if split == "val" and status == "labelled"]
    seen = masks.bank_of(list(index.items(ids)), (), bank.classes, bank.max_pixels).donors if ids else ()
    for name, row in report.classes.items():
        val = _encoded(standard.encoder, [(donor.pixels, donor.mask) for donor in seen if donor.name == name])
        real = standard.features[name]
        row["floor"] = {"n": len(val), "kernel_distance": gates.kernel_distance(real, val)} | gates.prdc(real, val)


# --- what lies on disk ----------------------------------------------------------------------------------------------


def _write_rows(target: Path, rows: Sequence[GateResult], without: Sequence[str]) -> None:
    """Write the rows, with the gates that were left out, so that nobody takes it for a whole check."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": [row.id for row in rows],
        "name": [row.name for row in rows],
        "passed": [row.passed for row in rows],
        "reasons": pa.array([list(row.reasons) for row in rows], pa.list_(pa.string())),
    }
    figures = ("iou", "near", "area", "aspect", "seam", "inside")
    columns |= {name: [row.figures[name] for row in rows] for name in figures}
    with files.written_aside(target) as aside:
        about = {WITHOUT: " ".join(sorted(set(without)))}
        pq.write_table(pa.table(columns).replace_schema_metadata(about), aside)  # type: ignore[no-untyped-call]


def _write_sheet(
    target: Path, bank: MaskBank, looks: Iterable[CandidateImage], rows: Sequence[GateResult], title: str
) -> None:
    shown: dict[str, dict[str, list[contact_sheet.Crop]]] = {}
    for look, row in zip(looks, rows, strict=True):
        of = shown.setdefault(look.name, {"real": [(donor.pixels, donor.mask) for donor in bank.of(look.name)]})
        of.setdefault("passed" if row.passed else "refused", []).append(cropped(look.pixels, look.mask))
    contact_sheet.write(target, shown, title)
