"""Batches into the index and out again: nothing leaks, nothing is lost, nothing stays behind."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from curate import files
from curate.admin import backup, gc, status
from curate.data import Label
from curate.errors import CurateError
from curate.index import app_views, sync
from curate.index import synthetic as follower
from curate.index.dataset import Index
from curate.labels.log import LabelLog
from curate.labels.splits import Decisions
from curate.project import Project
from curate.select.build_pool import index_images
from synth import accept, generate
from synth.generate import GenerateRequest, SyntheticBatch
from tests.conftest import dump
from train.data import dataset

SMALL = GenerateRequest(count=3, window=48)


def checked(batch: SyntheticBatch, failing: int = 0, without: str = "") -> SyntheticBatch:
    """Write a check in which the gates passed all but the first images."""
    images = batch.made()
    rows = [{"id": image.id, "passed": place >= failing, "reasons": []} for place, image in enumerate(images)]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"without": without})
    pyarrow.parquet.write_table(table, batch.folder / accept.CHECKED)
    return batch


@pytest.fixture
def batch(mill: Project) -> SyntheticBatch:
    return checked(generate.generate(mill, "paste", SMALL))


def synthetic(project: Project) -> dict[str, tuple[object, ...]]:
    names = ("source", "split", "group", "tags", "status", "missing", "filepath")
    return {id: tuple(row) for id, *row in Index(project).rows(*names) if row[0] == "synthetic"}


def test_accepted_images_join_train_with_mask_group_tag_and_view_until_dropped(mill: Project) -> None:
    before, batch = dump(mill), checked(generate.generate(mill, "paste", SMALL), failing=1)
    result = accept.accept(mill, batch.key[:8], forced=True)
    assert (result.entered, result.refused, result.classes) == (5, 1, {"crack": 2, "hole": 3})
    images = {image.id: image for image in batch.made()[1:]}
    shown = synthetic(mill)
    assert shown.keys() == images.keys()
    for id, (_, split, group, tags, state, missing, path) in shown.items():
        assert (split, group, tags, state, missing) == (
            "train",
            images[id].ground_group,
            [result.tag],
            "labelled",
            False,
        )
        assert Path(str(path)) == batch.folder / images[id].file
    for item in Index(mill).items(sorted(images)):
        mask = dataset.masks_of(item, [images[item.id].name])[0].astype(bool)
        assert (mask == generate.mask_of(batch, images[item.id])).all()
    index = Index(mill)
    assert index.dataset.load_saved_view(result.tag).count() == 5
    assert images.keys() <= {item.id for item in dataset.collect(index).train}
    assert not images.keys() & {item.id for item in dataset.collect(index).val}
    assert all(origin.ineligible for id, origin in index_images(index).items() if id in images)
    assert status.summarise(mill)["by_source"]["synthetic"] == 5
    assert not gc.find(mill)
    dropped = accept.drop(mill, batch.key[:8])
    assert (dropped.dropped, dropped.files) == (5, False)
    assert dump(mill) == before
    assert result.tag not in Index(mill).dataset.list_saved_views()
    assert result.tag not in Index(mill).dataset.distinct("tags")
    assert batch.folder.is_dir()
    sync.run(mill)
    assert dump(mill) == before


def test_accepting_twice_changes_nothing_and_a_dropped_batch_can_return(mill: Project, batch: SyntheticBatch) -> None:
    accept.accept(mill, batch.key, forced=True)
    before = dump(mill)
    again = accept.accept(mill, batch.key, forced=True)
    assert (again.entered, again.already) == (0, 6)
    assert dump(mill) == before
    accept.drop(mill, batch.key)
    assert not synthetic(mill)
    assert accept.accept(mill, batch.key, forced=True).entered == 6
    assert {id: row[0] for id, row in dump(mill).items()} == {id: row[0] for id, row in before.items()}
    assert accept.drop(mill, batch.key, with_files=True).files
    assert not batch.folder.exists()
    with pytest.raises(CurateError, match="unknown batch"):
        accept.drop(mill, batch.key)


def test_a_rebuilt_database_regains_synthetic_images_and_completes_half_accepted_ones(
    mill: Project, batch: SyntheticBatch
) -> None:
    accept.accept(mill, batch.key, forced=True)
    before = dump(mill)
    index = Index(mill)
    index.remove(sorted(synthetic(mill))[:2])  # as a kill between log and index leaves it
    report = sync.run(mill)
    assert report.added == 2
    assert dump(mill) == before
    index.set({"split": dict.fromkeys(synthetic(mill))})  # and one within the index
    accept.accept(mill, batch.key, forced=True)
    assert dump(mill) == before
    Index(mill).dataset.delete()
    sync.run(mill)
    app_views.arrange(mill)
    assert dump(mill) == before
    assert {tuple(row[3]) for row in synthetic(mill).values()} == {(f"synthetic-{batch.key[:8]}",)}  # type: ignore[arg-type]
    assert sync.run(mill).added == 0
    assert Index(mill).count(missing=True) == 0


def test_edits_of_synthetic_images_are_kept(mill: Project, batch: SyntheticBatch) -> None:
    accept.accept(mill, batch.key, forced=True)
    index = Index(mill)
    id = sorted(synthetic(mill))[0]
    sample = index.dataset.match(index.fo.ViewField("content_id") == id).first()
    sample["defects"] = index.fo.Detections()
    sample.save()
    sync.run(mill, rebuild=True)
    (item,) = Index(mill).items([id])
    assert item.label.clean
    assert item.source == "synthetic"
    accept.drop(mill, batch.key)
    assert id not in Index(mill).ids()


def test_a_backup_holds_accepted_images(mill: Project, batch: SyntheticBatch, tmp_path: Path) -> None:
    other = generate.generate(mill, "paste", GenerateRequest(count=1, window=48, seed=9))
    accept.accept(mill, batch.key, forced=True)
    before = dump(mill)
    backup.backup(mill, tmp_path / "a.tar.gz")
    names = {name for name in _names(tmp_path / "a.tar.gz") if name.startswith("work/synth/")}
    assert {f"work/synth/{batch.key}/{image.file}" for image in batch.made()} <= names
    assert not any(other.key in name for name in names)
    Index(mill).dataset.delete()
    files.remove(mill.folder)
    backup.restore(tmp_path / "a.tar.gz", mill.folder, {}, force=False, trust=True)
    assert dump(mill) == before
    sync.run(mill)
    assert dump(mill) == before


def _names(file: Path) -> list[str]:
    import tarfile

    with tarfile.open(file) as tar:
        return tar.getnames()


def test_an_image_whose_donor_moved_to_val_is_no_longer_trained_on(mill: Project, batch: SyntheticBatch) -> None:
    accept.accept(mill, batch.key, forced=True)
    images = {image.id: image for image in batch.made()}
    donor = next(image.donor_group for image in images.values() if image.donor_group != image.ground_group)
    held = next(str(group) for _, split, group in Index(mill).rows("split", "group") if split == "val")
    Decisions(mill.work / "splits").join([(held, donor)])
    for _ in range(2):
        sync.run(mill)
        shown = {id: row[1] for id, row in synthetic(mill).items()}
        theirs = {id for id, image in images.items() if donor in (image.donor_group, image.ground_group)}
        assert {id for id, split in shown.items() if split == "val"} == theirs
        assert {id for id, split in shown.items() if split == "train"} == images.keys() - theirs
    learnt = dataset.collect(Index(mill))
    assert not theirs & {item.id for item in (*learnt.train, *learnt.val)}


def test_a_batch_whose_synthesiser_saw_images_now_in_val_is_no_longer_trained_on(
    mill: Project, batch: SyntheticBatch
) -> None:
    index, images = Index(mill), {image.id: image for image in batch.made()}
    parents = {group for image in images.values() for group in (image.donor_group, image.ground_group)}
    rows = [(str(group), split) for group, split in (row[1:] for row in index.rows("group", "split"))]
    learnt = next(group for group, split in rows if split == "train" and group not in parents)
    files.write_json(batch.folder / generate.MANIFEST, batch.manifest | {"learnt": [learnt]})
    accept.accept(mill, batch.key, forced=True)
    sync.run(mill)
    assert images.keys() <= {item.id for item in dataset.collect(Index(mill)).train}
    Decisions(mill.work / "splits").join([(next(group for group, split in rows if split == "val"), learnt)])
    sync.run(mill)
    assert {row[1] for row in synthetic(mill).values()} == {"val"}
    taught = dataset.collect(Index(mill))
    assert not images.keys() & {item.id for item in (*taught.train, *taught.val)}


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_nothing_is_accepted_without_check_and_verdict(mill: Project) -> None:
    batch = generate.generate(mill, "paste", SMALL)
    with pytest.raises(CurateError, match=f"not checked yet. Run: curate synth check {batch.key[:8]}"):
        accept.accept(mill, batch.key, forced=True)
    checked(batch)
    with pytest.raises(CurateError, match="no full trial has said yet whether crack, hole"):
        accept.accept(mill, batch.key)
    files.write_json(batch.folder / accept.VERDICT, {"conclusive": True, "positive": {"crack": False, "hole": False}})
    with pytest.raises(CurateError, match="the trial found no help in synthetic crack, hole"):
        accept.accept(mill, batch.key)
    verdict = {"positive": {"crack": False, "hole": True}}
    files.write_json(batch.folder / accept.VERDICT, verdict | {"conclusive": False})
    with pytest.raises(CurateError, match=r"no full trial has said yet .* Run: curate synth trial --stage full"):
        accept.accept(mill, batch.key)
    files.write_json(batch.folder / accept.VERDICT, verdict | {"conclusive": True})
    checked(batch, without="copy seam")
    with pytest.raises(CurateError, match=r"checked without copy, seam, .* Run: curate synth check .*; or --force"):
        accept.accept(mill, batch.key)
    checked(batch)
    result = accept.accept(mill, batch.key)
    assert (result.classes, result.left, result.forced) == ({"hole": 3}, {"crack": 3}, False)
    assert len(synthetic(mill)) == 3
    (batch.folder / accept.VERDICT).write_text("[]")
    with pytest.raises(CurateError, match=r"is damaged\. Run the trial again"):
        accept.accept(mill, batch.key)
    (batch.folder / accept.VERDICT).unlink()
    checked(batch, failing=6)
    with pytest.raises(CurateError, match=r"no image of batch .* passed its check"):
        accept.accept(mill, batch.key, forced=True)


def test_leaking_batches_are_refused(mill: Project, batch: SyntheticBatch) -> None:
    index, image = Index(mill), batch.made()[0]
    ground = dict(index.rows("split"))[image.ground]
    for id in (image.ground, image.donor.split(":")[0]):
        index.set({"split": {id: "test"}})
        with pytest.raises(CurateError, match=r"are in val or test now .* it would leak"):
            accept.accept(mill, batch.key, forced=True)
        index.set({"split": {id: ground}})
    val = next(id for id, split in index.rows("split") if split == "val")
    old = dict(index.rows("group"))[val]
    index.set({"group": {val: image.donor_group}})  # the same piece, as it turns out
    with pytest.raises(CurateError, match=f"first: {image.donor_group}.: it would leak"):
        accept.accept(mill, batch.key, forced=True)
    index.set({"group": {val: "new"}})
    with pytest.raises(CurateError, match="does not have 1 ids and groups of today's val and test on its block-list"):
        accept.accept(mill, batch.key, forced=True)
    index.set({"group": {val: old}})
    files.write_json(batch.folder / generate.MANIFEST, batch.manifest | {"project": "elsewhere"})
    with pytest.raises(CurateError, match="made for project 'elsewhere', this is 'plant'"):
        accept.accept(mill, batch.key, forced=True)
    assert not synthetic(mill)


def test_a_replaced_image_file_is_refused(mill: Project, batch: SyntheticBatch) -> None:
    image = batch.made()[-1]
    (batch.folder / image.file).write_bytes((batch.folder / batch.made()[0].file).read_bytes())
    with pytest.raises(CurateError, match="Generate it again"):
        accept.accept(mill, batch.key, forced=True)
    assert not synthetic(mill)
    assert not sync.run(mill).added


def test_a_replaced_mask_file_is_refused(mill: Project, batch: SyntheticBatch) -> None:
    image = batch.made()[-1]
    mask = generate.mask_of(batch, image).astype("uint8") * 255
    for changed, words in ((mask[:-1], "is not of its image's size"), (mask | 255, "is not the mask that was made")):
        Image.fromarray(changed).save(batch.folder / image.mask_file)
        with pytest.raises(CurateError, match=f"{words}. Generate it again, after: curate synth drop {batch.key[:8]}"):
            accept.accept(mill, batch.key, forced=True)
    assert not synthetic(mill)


def test_paths_in_foreign_manifests_are_refused(mill: Project, batch: SyntheticBatch, tmp_path: Path) -> None:
    """A manifest that names another folder as its batch, one that says too little, a class that is not ours."""
    images, manifest = batch.made(), batch.manifest
    (tmp_path / "mine").mkdir()
    files.write_json(batch.folder / generate.MANIFEST, manifest | {"key": f"{batch.key}/../../../../mine"})
    assert generate.opened(mill, batch.key).key == batch.key
    assert accept.accept(mill, batch.key, forced=True).key == batch.key
    assert {Path(str(row[6])).parent.parent for row in synthetic(mill).values()} == {batch.folder}
    accept.drop(mill, batch.key)
    generate._write_table(batch.folder / generate.TABLE, [replace(image, name="rust") for image in images])
    with pytest.raises(CurateError, match=r"unknown class 'rust'; allowed: crack, hole\. Batch .* is of other classes"):
        accept.accept(mill, batch.key, forced=True)
    generate._write_table(
        batch.folder / generate.TABLE, [replace(image, file="../../project.toml") for image in images]
    )
    with pytest.raises(CurateError, match="leaves the data root"):
        accept.accept(mill, batch.key, forced=True)
    (batch.folder / accept.CHECKED).write_bytes(b"PAR1")
    with pytest.raises(CurateError, match=r"checked\.parquet is damaged .* Run: curate synth check"):
        accept.accept(mill, batch.key, forced=True)
    files.write_json(batch.folder / generate.MANIFEST, {"key": batch.key})
    with pytest.raises(CurateError, match=r"manifest\.json is damaged: remove"):
        generate.opened(mill, batch.key)
    assert not synthetic(mill)


def test_forced_acceptance_is_logged_and_paths_in_the_log_stay_inside(
    mill: Project, batch: SyntheticBatch, tmp_path: Path
) -> None:
    shutil.copy(batch.folder / batch.made()[0].file, mill.work / "stray.png")
    with closing(LabelLog(mill.work / "labels", mill.class_names)) as label_log:
        ground = batch.made()[0].ground
        for folder, path in (("..", "(synthetic):../stray.png"), ("", f"(synthetic):/{tmp_path}/stray.png")):
            follower.log(label_log, "0" * 64, follower.SyntheticOrigin(folder, ground, path), Label("labelled"))
            label_log.flush()
            assert not follower.accepted(label_log)
        name = "a/../../stray.png"
        follower.log(
            label_log,
            "0" * 64,
            follower.SyntheticOrigin("a", ground, follower.reference("a", name[2:])),
            Label("labelled"),
        )
        assert not follower.accepted(label_log)
    accept.accept(mill, batch.key, forced=True)
    with closing(LabelLog(mill.work / "labels")) as label_log:
        origins = [entry.extra["synthetic"] for id in sorted(synthetic(mill)) for entry in label_log.history(id)]
    assert [(origin["in"], origin["forced"]) for origin in origins] == [(True, True)] * 6


def test_a_kill_during_drop_leaves_no_half_batch(
    mill: Project, batch: SyntheticBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = batch.made()[0].file

    def killed(folder: Path) -> None:
        (folder / first).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            accept.drop(mill, batch.key, with_files=True)
    assert not generate.every(mill)
    assert [leftover.path.name for leftover in gc.find(mill)] == [f".{batch.key}.part"]
    again = generate.generate(mill, "paste", SMALL)
    assert again.fresh
    assert all((again.folder / image.file).is_file() for image in again.made())


def test_a_damaged_image_does_not_stop_the_index(mill: Project, batch: SyntheticBatch) -> None:
    accept.accept(mill, batch.key, forced=True)
    (batch.folder / batch.made()[0].file).write_bytes(b"")
    Index(mill).dataset.delete()
    sync.run(mill)
    assert synthetic(mill).keys() == {image.id for image in batch.made()[1:]}
