"""Checks of files and labels: files that are not sound images, labels that do not fit, fingerprints, groups, strata."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from curate import files
from curate.data import UNLABELLED, Box, Label, MaskFile, Record, Region, make_defect
from curate.errors import LabelProblem
from curate.index.intake import (
    ImageFacts,
    SourceRules,
    fingerprint,
    group_of,
    image_facts,
    label_of,
    stratum_of,
    template_pattern,
)
from curate.masks.decode import pixels_of
from curate.paths import safe_join
from curate.project import LimitsConfig
from curate.vectors import nearest
from tests.fakes import REAL, save_image, save_mask, steel

KINDS = {"jpg": "JPEG", "png": "PNG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP"}


def picture(record: Record, rules: SourceRules) -> ImageFacts:
    return image_facts(safe_join(rules.root, record.path), record, rules)


def mark_of(record: Record, rules: SourceRules, mark: str) -> str | None:
    return fingerprint(safe_join(rules.root, record.path), record, rules, mark)


def rules(root: Path, **more: Any) -> SourceRules:
    return SourceRules(
        root, **({"limits": LimitsConfig(), "names": {}, "allowed": frozenset({"crack", "hole"})} | more)
    )


def encoded(kind: str, width: int = 64, height: int = 48, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(steel(width, height)).save(data, kind, **options)
    return data.getvalue()


def png(width: int, height: int, pixels: bytes = b"\0" * 100) -> bytes:
    """A PNG whose header promises any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def refused(root: Path, name: str = "a.jpg", **more: Any) -> str:
    with pytest.raises(LabelProblem) as problem:
        picture(Record(name), rules(root, **more))
    assert "\n" not in str(problem.value)
    return str(problem.value)


# --- good files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("verify", ["tail", "decode"])
def test_every_kind_of_image_is_read(tmp_path: Path, suffix: str, verify: Any) -> None:
    content = encoded(KINDS[suffix])
    (tmp_path / f"a.{suffix.upper()}").write_bytes(content)
    found = picture(Record(f"a.{suffix.upper()}"), rules(tmp_path, limits=LimitsConfig(verify=verify)))
    assert (found.width, found.height, found.bytes, found.note) == (64, 48, len(content), None)
    assert found.id == hashlib.sha256(content).hexdigest()
    assert found.mime == f"image/{KINDS[suffix].lower()}"
    assert found.channels == (3 if suffix == "webp" else 1)


def test_a_png_named_jpg_is_taken_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("PNG"))
    found = picture(Record("a.jpg", note="from the plant"), rules(tmp_path))
    assert found.note == ".jpg file holds PNG bytes; from the plant"
    assert found.mime == "image/png"


def test_a_jpeg_of_several_pictures_is_a_jpeg(tmp_path: Path) -> None:
    """Some cameras put a preview behind the picture; Pillow calls such a file MPO."""
    data = io.BytesIO()
    image = Image.fromarray(steel(64, 48))
    image.save(data, "MPO", save_all=True, append_images=[image])
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    found = picture(Record("a.jpg"), rules(tmp_path))
    assert (found.mime, found.note, found.width) == ("image/jpeg", None, 64)


# --- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("verify", ["tail", "decode"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_cut_off_image_is_refused(tmp_path: Path, suffix: str, verify: Any, share: float) -> None:
    content = encoded(KINDS[suffix], 200, 150)
    (tmp_path / "a.jpg").write_bytes(content[: int(len(content) * share)])
    assert re.search("truncated|damaged|not an image", refused(tmp_path, limits=LimitsConfig(verify=verify)))


def test_a_jpeg_without_its_last_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG")[:-2])
    assert refused(tmp_path) == "truncated JPEG: the end marker is missing"


@pytest.mark.parametrize("cut", [8, 12])
def test_a_png_without_its_end_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG")[:-cut])
    assert re.search("truncated|damaged", refused(tmp_path, "a.png"))


def test_a_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    assert refused(tmp_path, "a.png").startswith("damaged image: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file is empty (0 bytes)"),
        (b"not an image\n", "not an image that can be read"),
        (b"\xff\xd8", "not an im"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert refused(tmp_path).startswith(reason)


def test_a_format_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded("GIF"))
    assert refused(tmp_path).startswith("not an image that can be read (JPEG, PNG")


@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(60_000, 60_000))
    assert refused(tmp_path, "a.png") == "60000x60000 pixels are more than limits.max_pixels = 200000000"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10_000, 14_000, 20_000])
def test_the_limit_of_pixels_is_the_config_s_alone(tmp_path: Path, side: int) -> None:
    """Pillow would warn above 89 million pixels and refuse above 178 million, whatever is configured."""
    (tmp_path / "a.png").write_bytes(png(side, side))
    assert picture(Record("a.png"), rules(tmp_path, limits=LimitsConfig(max_pixels=side**2))).width == side
    assert "more than" in refused(tmp_path, "a.png", limits=LimitsConfig(max_pixels=side**2 - 1))


@pytest.mark.parametrize("path", ["../b.jpg", "/etc/passwd", "C:\\b.jpg", "link.jpg", "sub/b.jpg"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    save_image(tmp_path / "b.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "b.jpg")
    (root / "sub").symlink_to(tmp_path)
    assert "the data root" in refused(root, path)


def test_a_folder_or_a_pipe_named_like_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            image_facts(tmp_path / name, Record(name), rules(tmp_path))


def test_a_file_larger_than_any_image_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)  # a hole: it takes no room
    with pytest.raises(OSError, match="larger than 1000 bytes"):
        files.read_bytes(tmp_path / "a.jpg", 1000)


def test_a_missing_or_forbidden_file_is_an_os_error_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        picture(Record("a.jpg"), rules(tmp_path))
    if os.geteuid() != 0:  # the super-user may read everything
        save_image(tmp_path / "a.jpg").chmod(0)
        with pytest.raises(PermissionError):
            picture(Record("a.jpg"), rules(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", KINDS)
def test_random_damage_is_refused_or_harmless_but_never_a_crash(tmp_path: Path, suffix: str) -> None:
    source = random.Random(suffix)
    content = encoded(KINDS[suffix], 24, 16)
    refusals = 0
    for round_ in range(150):
        damaged = bytearray(content)
        reach = min(len(content), 120) if round_ % 2 else len(content)
        for _ in range(source.choice((1, 3, 9))):
            damaged[source.randrange(reach)] = source.randrange(256)
        (tmp_path / "a.jpg").write_bytes(damaged[: source.randrange(len(damaged))] if round_ % 3 == 0 else damaged)
        try:
            picture(Record("a.jpg"), rules(tmp_path))
        except LabelProblem:
            refusals += 1
    assert refusals > 20


def tiff_of_bytes_for_numbers() -> bytes:
    """A TIFF whose header gives the place of its pixels as text (tag 273 of type 2), over which Pillow adds up."""
    content = bytearray(encoded("TIFF"))
    tag = struct.pack("<HHI", 273, 4, 1)
    at = content.index(tag)
    content[at : at + 8] = struct.pack("<HHI", 273, 2, 1)
    return bytes(content)


def by_every_reader(folder: Path, content: bytes) -> list[str]:
    """Return the outcome of each of the three readers of image files, and of the one of masks."""
    path = folder / "a.tif"
    path.write_bytes(content)
    masked = Record("a.tif", (Region("crack", MaskFile("a.tif")),), labelled=True)
    messages = [refused(folder, "a.tif")]
    for read in (lambda: pixels_of(content, 10**9), lambda: label_of(masked, rules(folder), 64, 48)):
        with pytest.raises(LabelProblem) as problem:
            read()
        messages.append(str(problem.value))
    assert nearest.confirmed_pairs([(0, 1)], [str(path), str(path)], 10**9) == []
    return messages


def test_whatever_a_decoder_raises_quarantines_the_file_in_every_reader(tmp_path: Path) -> None:
    content = tiff_of_bytes_for_numbers()
    with pytest.raises(TypeError):
        Image.open(io.BytesIO(content)).load()
    assert all("damaged image: TypeError: " in message for message in by_every_reader(tmp_path, content))


@pytest.mark.parametrize("error", [TypeError(""), struct.error("x\ny"), MemoryError(), ZeroDivisionError("division")])
def test_any_exception_of_a_decoder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fail)  # a stand-in: no file makes every decoder raise each of these
    assert all(f"damaged image: {type(error).__name__}" in message for message in by_every_reader(tmp_path, b"II*"))


def test_a_tiff_that_once_ended_the_index_is_quarantined(tmp_path: Path) -> None:
    crasher = REAL / "crashers" / "bad.tif"
    if not crasher.is_file():
        pytest.skip(f"{crasher} is not at hand")
    assert "damaged image: TypeError" in by_every_reader(tmp_path, crasher.read_bytes())[0]


# --- labels -----------------------------------------------------------------------------------------------------------

CRACK = Region("crack", Box(1, 2, 3, 4))


def label(record: Record, root: Path = Path(), **more: Any) -> Label:
    return label_of(record, rules(root, **more), 16, 12)


def test_a_label_is_canonical() -> None:
    record = Record("a.jpg", (CRACK,), ("hole", "hole"), labelled=True, size=(16, 12))
    assert label(record) == Label("labelled", (make_defect("crack", (1, 2, 3, 4)),), ("hole",))


def test_labelled_with_nothing_is_clean_and_not_labelled_is_unlabelled() -> None:
    assert label(Record("a.jpg", labelled=True)).clean
    assert label(Record("a.jpg")) == UNLABELLED


def test_a_declared_size_that_is_not_the_image_s_is_refused() -> None:
    with pytest.raises(LabelProblem, match="label file says 12x16, the image is 16x12"):
        label(Record("a.jpg", (CRACK,), labelled=True, size=(12, 16)))


@pytest.mark.parametrize("record", [Record("a", (Region("rust", Box(0, 0, 1, 1)),)), Record("a", classes=("rust",))])
def test_an_unknown_class_is_refused_with_those_that_are_known(record: Record) -> None:
    with pytest.raises(LabelProblem, match="unknown class 'rust'; allowed: crack, hole"):
        label(replace(record, labelled=True))


def test_names_map_labels_to_classes() -> None:
    record = Record("a.jpg", (Region("Riss", Box(0, 0, 1, 1)),), ("Loch",), labelled=True)
    found = label(record, names={"Riss": "crack", "Loch": "hole"})
    assert found.present == {"crack", "hole"}


@pytest.mark.parametrize(("boxes", "taken"), [("clip", True), ("quarantine", False)])
def test_boxes_that_leave_the_image_follow_the_config(boxes: Any, taken: bool) -> None:
    record = Record("a.jpg", (Region("crack", Box(-1, 0, 3, 4)),), labelled=True)
    if taken:
        assert label(record, limits=LimitsConfig(boxes=boxes)).defects[0].box == (0, 0, 2, 4)
    else:
        with pytest.raises(LabelProblem, match="leaves the image"):
            label(record, limits=LimitsConfig(boxes=boxes))


@pytest.mark.parametrize("keeps", [True, False])
def test_an_empty_mask_keeps_its_class_only_where_the_format_says_so(tmp_path: Path, keeps: bool) -> None:
    save_mask(tmp_path / "m.png", boxes=())
    record = Record("a.jpg", (Region("crack", MaskFile("m.png")),), labelled=True)
    found = label(record, tmp_path, empty_mask_keeps_class=keeps)
    assert found == Label("labelled", (), ("crack",) if keeps else ())


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_file_mask_label_and_rules_and_not_otherwise(tmp_path: Path) -> None:
    save_image(tmp_path / "a.jpg")
    save_mask(tmp_path / "m.png")
    record = Record("a.jpg", (Region("crack", MaskFile("m.png")),), labelled=True)
    ours = rules(tmp_path)
    first = mark_of(record, ours, ours.digest)
    assert first is not None
    assert mark_of(record, ours, rules(tmp_path).digest) == first
    assert mark_of(replace(record), ours, ours.digest) == first

    changed = [
        mark_of(replace(record, **change), ours, ours.digest)
        for change in ({"labelled": False}, {"classes": ("hole",)}, {"regions": ()}, {"group": "g"}, {"line": 7})
    ]
    changed.append(mark_of(record, ours, "another mark"))
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    changed.append(mark_of(record, ours, ours.digest))
    os.utime(tmp_path / "m.png", ns=(1, 1))
    changed.append(mark_of(record, ours, ours.digest))
    (tmp_path / "m.png").unlink()
    changed.append(mark_of(record, ours, ours.digest))
    assert len({first, *changed}) == len(changed) + 1
    (tmp_path / "a.jpg").unlink()
    assert mark_of(record, ours, ours.digest) is None


@pytest.mark.parametrize(
    "change",
    [
        {"limits": LimitsConfig(max_pixels=5)},
        {"limits": LimitsConfig(boxes="quarantine")},
        {"names": {"Riss": "crack"}},
        {"allowed": frozenset({"crack"})},
        {"empty_mask_keeps_class": True},
        {"template": template_pattern("{line}/{name}")},
        {"stratum": "{line}"},
        {"group": re.compile("a")},
        {"group": re.compile("a" * 300)},
        {"group": re.compile("a" * 300 + "b")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_rule_is_part_of_the_digest(change: dict[str, Any]) -> None:
    base = rules(Path())
    assert rules(Path(), **change).digest != base.digest
    assert rules(Path(), **change).digest == rules(Path(), **change).digest


def test_patterns_that_differ_late_have_different_marks() -> None:
    marks = {rules(Path(), group=re.compile("(?:x|y)" * 100 + end)).digest for end in "abc"}
    assert len(marks) == 3


# --- group and stratum ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "stratum", "path", "expected"),
    [
        ("{line}/{camera}/{date}/{name}", None, "A/c1/2026-01-01/x.jpg", "A/c1"),
        ("{line}/{camera}/{date}/{name}", "{camera}@{line}", "A/c1/2026-01-01/x.jpg", "c1@A"),
        ("{line}/{camera}/{date}/{name}", None, "A/c1/x.jpg", None),
        ("{line}/{camera}/{date}/{name}", None, "A/c1/d/e/x.jpg", None),
        ("{name}", None, "x.jpg", None),
        ("{line}.{grade}/{name}", None, "A.S355/x.jpg", "A/S355"),
        ("{line}.{grade}/{name}", None, "AxS355/x.jpg", None),
        (None, None, "A/x.jpg", None),
    ],
)
def test_stratum_from_the_path(template: str | None, stratum: str | None, path: str, expected: str | None) -> None:
    pattern = template_pattern(template) if template else None
    assert stratum_of(path, rules(Path(), template=pattern, stratum=stratum)) == expected


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        (r"/([^/_]+)_", "line/coil7_3.jpg", "coil7"),
        (r"coil\d+", "line/coil7_3.jpg", "coil7"),
        (r"(?:tile(\d+)|coil(\d+))_", "coil12_1.jpg", "12"),
        (r"coil(\d+)", "tile1.jpg", None),
        (None, "coil12_1.jpg", None),
    ],
)
def test_group_from_the_path(pattern: str | None, path: str, expected: str | None) -> None:
    assert group_of(path, rules(Path(), group=re.compile(pattern) if pattern else None)) == expected
