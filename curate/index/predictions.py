"""A model's predictions in the index: written by `curate predict`, read by push, evaluation and the App; not labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from curate.data import Defect
from curate.errors import LabelProblem
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
        """The model's confidence that the image shows any defect."""
        return max((confidence for _, confidence in (*self.defects, *self.classes)), default=0.0)


def store(index: Index, by: str, predictions: Mapping[str, Prediction]) -> None:
    """Write the predictions of a model into the index, in place of any earlier ones of these images.

    Args:
        index: The index.
        by: The model's name.
        predictions: By content id.
    """
    fo = index.fo
    index.declare(**{DEFECTS: fo.Detections, CLASSES: fo.Classifications, BY: fo.StringField})
    sizes = {image.id: (image.width, image.height) for image in index.shown(predictions)}
    index.update({id: _fields(by, predictions[id], *size) for id, size in sizes.items()})


def load(index: Index, ids: Iterable[str], field: str = DEFECTS) -> Iterator[tuple[str, Prediction]]:
    """Yield the predictions of these images; images without any are left out.

    `field`: an fo.Detections field of another tool, to read regions from.
    """
    names = (*("content_id", "width", "height"), f"{field}.detections", f"{CLASSES}.classifications", BY)
    for chunk in chunks(ids, CHUNK):
        for row in index.documents(chunk, names):
            if row.get(field) or row.get(CLASSES):
                yield row["content_id"], _read(row, field)


def _fields(by: str, prediction: Prediction, width: int, height: int) -> dict[str, Any]:
    regions = [documents.detection(d, width, height) | {"confidence": c} for d, c in prediction.defects]
    whole = [documents.classification(name) | {"confidence": c} for name, c in prediction.classes]
    return {
        DEFECTS: {"_cls": "Detections", "detections": regions},
        CLASSES: {"_cls": "Classifications", "classifications": whole},
        BY: by,
    }


def _read(row: Mapping[str, Any], field: str) -> Prediction:
    size = row["width"], row["height"]
    regions = (row.get(field) or {}).get("detections") or ()
    pairs = ((_inside(documents.defect(region, *size), size), _confidence(region)) for region in regions)
    whole = (row.get(CLASSES) or {}).get("classifications") or ()
    names = tuple((str(entry.get("label")), _confidence(entry)) for entry in whole if field == DEFECTS)
    kept = tuple((defect, confidence) for defect, confidence in pairs if defect)
    return Prediction(kept, names, str(row.get(BY) or "") if field == DEFECTS else field)


def _inside(defect: Defect | str, size: tuple[int, int]) -> Defect | None:
    """Return what of the region lies on the image; None for nothing, and for a fault."""
    from curate.masks import shapes  # its kernels take half a second to load

    try:
        return shapes.tight(defect, size) if isinstance(defect, Defect) else None
    except LabelProblem:
        return None


def _confidence(region: Mapping[str, Any]) -> float:
    """Return the confidence of a region; without one, as other tools leave it, 1."""
    value = region.get("confidence")
    return 1.0 if value is None else float(value)
