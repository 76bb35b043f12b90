"""Predictions beside labels in the index; severities and contradicting versions in the log."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np

from curate.data import Label, make_defect
from curate.index import app_edits, predictions
from curate.index.dataset import Index
from curate.index.predictions import Prediction
from curate.labels.log import Entry, LabelLog
from curate.masks import shapes
from curate.project import Project
from tests import fakes


def _some(index: Index) -> list[str]:
    return sorted(index.ids())[:2]


def _region(name: str = "crack") -> tuple[object, ...]:
    return shapes.defect_from_mask(name, fakes.blob(24, 32, seed=3)), make_defect(name, (1.5, 2, 3, 4))


def test_what_is_predicted_comes_back_as_it_was_and_changes_no_label(indexed: Project) -> None:
    index = Index(indexed)
    first, second = _some(index)
    mask, box = _region()
    before = {image.id: image for image in index.shown()}
    stored = {first: Prediction(((mask, 0.75), (box, 0.25)), (("hole", 0.5),)), second: Prediction()}
    predictions.store(index, "m1", stored)
    found = dict(predictions.load(index, index.ids()))
    assert found[first].defects == ((mask, 0.75), (box, 0.25))
    assert found[first].classes == (("hole", 0.5),)
    assert found[first].score == 0.75
    assert found[first].by == "m1"
    assert found.keys() == {first, second}, "of the second it is known that nothing is predicted"
    after = {image.id: image for image in index.shown()}
    assert {id: image.label for id, image in after.items()} == {id: image.label for id, image in before.items()}
    assert not index.edited()
    assert index.dataset.match({"content_id": first}).first().predictions.detections[0].confidence == 0.75


def test_another_tools_field_is_read_too(indexed: Project) -> None:
    index = Index(indexed)
    id = next(image.id for image in index.shown() if image.label.defects)
    index.dataset.clone_sample_field("defects", "theirs")
    ((_, found),) = predictions.load(index, [id], "theirs")
    assert [defect for defect, _ in found.defects] == list(next(iter(index.shown([id]))).label.defects)
    assert found.by == "theirs"


def test_regions_of_another_tool_that_leave_the_image_are_cut(indexed: Project) -> None:
    import fiftyone as fo

    index = Index(indexed)
    image = next(iter(index.shown()))
    mask = np.ones((8, 8), bool)
    size = 8 / image.width, 8 / image.height
    over = fo.Detection(label="crack", mask=mask, bounding_box=[1 - size[0] / 2, 0, *size])
    outside = [
        fo.Detection(label="crack", mask=mask, bounding_box=[1.5, 0, *size]),
        fo.Detection(label="crack", bounding_box=[-1, -1, 0.5, 0.5]),
    ]
    index.dataset.add_sample_field("theirs", fo.EmbeddedDocumentField, embedded_doc_type=fo.Detections)
    index.dataset.match({"content_id": image.id}).set_values("theirs", [fo.Detections(detections=[over, *outside])])
    ((_, found),) = predictions.load(index, [image.id], "theirs")
    ((defect, _),) = found.defects
    assert defect.box == (image.width - 4, 0, 4, 8)
    assert shapes.mask_of(defect, image.width, image.height).sum() == 32


def test_a_severity_goes_through_log_and_index(indexed: Project) -> None:
    index = Index(indexed)
    id = _some(index)[0]
    mask, box = (replace(image, severity="heavy") for image in _region())
    label = Label("labelled", (mask, box))
    with closing(LabelLog(indexed.work / "labels", indexed.class_names)) as log:
        log.append(Entry(id, label, "label-studio", "anna", "2026-01-01T00:00:00Z"))
        app_edits.show(index, log, [id], indexed.class_names)
    assert next(iter(index.shown([id]))).label.digest == label.digest
    assert not index.edited()
    sample = index.dataset.match({"content_id": id}).first()
    sample.defects.detections[0].severity = "light"
    sample.save()
    with closing(LabelLog(indexed.work / "labels", indexed.class_names)) as log:
        assert app_edits.capture(index, log, indexed.class_names) == [id]
        assert sorted(d.severity for d in log.state(id).label.defects) == ["heavy", "light"]


def test_versions_that_contradict_an_entry_are_shown_beside_it_and_follow_a_rename(indexed: Project) -> None:
    index = Index(indexed)
    id = _some(index)[0]
    mask, box = _region()
    other = Label("labelled", (box,))
    extra = {"others": {"label-studio: ben": other.to_json()}}
    with closing(LabelLog(indexed.work / "labels", indexed.class_names)) as log:
        disputed = Label("disputed", (mask,), reason="edited-in-app")
        log.append(Entry(id, disputed, "decision", "curate", "2026-01-01T00:00:00Z", extra=extra))
        assert log.state(id).others == (("label-studio: ben", other),)
        key = log.key(id)
        app_edits.show(index, log, [id], indexed.class_names)
        assert index.dataset.match({"content_id": id}).first().other_defects.detections[0].label == "crack"
        log.rename({"crack": "split"}, "me", "rename")
        assert log.state(id).others[0][1].present == {"split"}
        assert log.key(id) != key
