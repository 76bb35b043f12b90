"""What a model says of images: written by `curate predict`, read by push, evaluation and the App. Never a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from curate.data import Defect
from curate.index import documents
from curate.index.dataset import CHUNK, Index, chunks

DEFECTS, CLASSES, BY = "predictions", "predicted_classes", "predicted_by"


@dataclass(frozen=True, slots=True)
class Prediction:
    """Regions and whole-image classes, each with the model's confidence in it (0 to 1)."""

    defects: tuple[tuple[Defect, float], ...] = ()
    classes: tuple[tuple[str, float], ...] = ()
    by: str = ""

    @property
    def score(self) -> float:
        """How sure the model is that something is there."""
        return max((sure for _, sure in (*self.defects, *self.classes)), default=0.0)


def store(index: Index, by: str, found: Mapping[str, Prediction]) -> None:
    """Show these predictions in the index, in place of what any model said of these images before."""
    _declare(index)
    sizes = {one.id: (one.width, one.height) for one in index.shown(found)}
    index.update({id: _fields(by, found[id], *size) for id, size in sizes.items()})


def load(index: Index, ids: Iterable[str], field: str = DEFECTS) -> Iterator[tuple[str, Prediction]]:
    """What is predicted of these images; one of which nothing is known does not appear.

    `field`: regions of any other fo.Detections field, which some other tool may have filled.
    """
    names = (*("content_id", "width", "height"), f"{field}.detections", f"{CLASSES}.classifications", BY)
    for chunk in chunks(ids, CHUNK):
        for found in index.documents(chunk, names):
            if found.get(field) or found.get(CLASSES):
                yield found["content_id"], _read(found, field)


def _declare(index: Index) -> None:
    fo = index.fo
    index.declare(predicted_by=fo.StringField)
    for name, kind in ((DEFECTS, fo.Detections), (CLASSES, fo.Classifications)):
        if index.dataset.get_field(name) is None:
            index.dataset.add_sample_field(name, fo.EmbeddedDocumentField, embedded_doc_type=kind)


def _fields(by: str, one: Prediction, width: int, height: int) -> dict[str, Any]:
    regions = [documents.detection(defect, width, height) | {"confidence": sure} for defect, sure in one.defects]
    whole = [documents.classification(name) | {"confidence": sure} for name, sure in one.classes]
    return {
        DEFECTS: {"_cls": "Detections", "detections": regions},
        CLASSES: {"_cls": "Classifications", "classifications": whole},
        BY: by,
    }


def _read(found: Mapping[str, Any], field: str) -> Prediction:
    size = found["width"], found["height"]
    regions = (found.get(field) or {}).get("detections") or ()
    pairs = ((documents.defect(region, *size), _sure(region)) for region in regions)
    whole = (found.get(CLASSES) or {}).get("classifications") or ()
    names = tuple((str(one.get("label")), _sure(one)) for one in whole if field == DEFECTS)
    kept = tuple((one, sure) for one, sure in pairs if isinstance(one, Defect))
    return Prediction(kept, names, str(found.get(BY) or "") if field == DEFECTS else field)


def _sure(region: Mapping[str, Any]) -> float:
    """Without a word on it, a region that another tool drew is taken to be meant."""
    value = region.get("confidence")
    return 1.0 if value is None else float(value)
