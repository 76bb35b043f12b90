"""Untrusted paths stay below the data root; listings are stable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.errors import LabelProblem
from curate.paths import printable, safe_join, walk


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    return folder


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "./a.jpg", "sub//a.jpg", "~", "-", " ", "...", "ö.jpg", "a..b"])
def test_honest_names(root: Path, name: str) -> None:
    assert safe_join(root, name) == root / name


@pytest.mark.parametrize("name", ["12:30:05.jpg", "sub/12:30.jpg", "a:b"])
def test_a_time_in_a_file_name_is_no_drive(root: Path, name: str) -> None:
    assert safe_join(root, name) == root / name


def test_backslashes_part_folders(root: Path) -> None:
    assert safe_join(root, "sub\\a.jpg") == root / "sub" / "a.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.jpg",
        "sub/../../secret.jpg",
        "sub/..",
        "..\\secret.jpg",
        "/etc/passwd",
        "//x/y",
        "\\\\server\\x",
        "C:\\x.jpg",
        "C:/x.jpg",
        "file:///etc/passwd",
        "https://x/y.jpg",
        "a\0b",
    ],
)
def test_names_that_lead_out(root: Path, name: str) -> None:
    with pytest.raises(LabelProblem, match="leaves the data root"):
        safe_join(root, name)


@pytest.mark.parametrize("name", ["", ".", "./", "././/"])
def test_names_of_nothing(root: Path, name: str) -> None:
    with pytest.raises(LabelProblem, match="names no file"):
        safe_join(root, name)


def test_links_may_stay_inside_but_not_lead_out(root: Path) -> None:
    (root / "sub" / "a.jpg").touch()
    links = {"in.jpg": "sub/a.jpg", "out.jpg": "../secret.jpg", "up": "..", "abs.jpg": str(root / "sub" / "a.jpg")}
    for name, target in (links | {"chain.jpg": "out.jpg", "dangling.jpg": "nothing.jpg"}).items():
        (root / name).symlink_to(target)
    for name in ("in.jpg", "abs.jpg", "dangling.jpg"):
        assert safe_join(root, name) == root / name
    for name in ("out.jpg", "up/secret.jpg", "chain.jpg"):
        with pytest.raises(LabelProblem, match="through a symlink"):
            safe_join(root, name)


def test_a_root_that_is_a_link_itself_is_fine(root: Path) -> None:
    (root / "a.jpg").touch()
    link = root.parent / "link"
    link.symlink_to(root)
    assert safe_join(link, "a.jpg") == link / "a.jpg"


def test_a_sibling_with_the_root_s_name_as_its_beginning_is_outside(root: Path) -> None:
    other = root.with_name("root-other")
    other.mkdir()
    (root / "x").symlink_to(other)
    with pytest.raises(LabelProblem, match="through a symlink"):
        safe_join(root, "x/a.jpg")


def test_a_link_to_itself_is_refused(root: Path) -> None:
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    for name in ("loop.jpg", "one", "two"):
        with pytest.raises(LabelProblem, match="leads to itself"):
            safe_join(root, name)


def test_a_name_that_is_no_utf8_is_refused_in_words_that_can_be_printed(root: Path) -> None:
    name = os.fsdecode(b"gr\xfcn.jpg")
    (root / name).touch()
    assert list(walk(root)) == [name]
    with pytest.raises(LabelProblem) as problem:
        safe_join(root, name)
    assert str(problem.value).encode() == b"path 'gr\\udcfcn.jpg' is not valid UTF-8: rename the file"
    assert printable("grün") == "grün"


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("./\\a:~ \0-C\n"), max_size=12))
def test_whatever_the_name_the_result_is_below_the_root(name: str) -> None:
    root = Path("/srv/some/root")
    try:
        path = safe_join(root, name)
    except LabelProblem:
        return
    below = os.path.normpath(path)
    assert below.startswith("/srv/some/root/")


def test_a_listing_is_sorted_folder_by_folder_and_shows_images_only(root: Path) -> None:
    for name in ("b.jpg", "a.PNG", "sub/z.tif", "sub/a.jpeg", "c.txt", ".hidden.jpg", "a b.bmp"):
        (root / name).touch()
    for name in (".git/x.jpg", "other/x.webp"):
        (root / name).parent.mkdir()
        (root / name).touch()
    (root / "linked").symlink_to(root / "sub")
    (root / "link.jpg").symlink_to("b.jpg")
    expected = ["a b.bmp", "a.PNG", "b.jpg", "link.jpg", "other/x.webp", "sub/a.jpeg", "sub/z.tif"]
    assert list(walk(root)) == expected
    assert list(walk(root, frozenset({".txt"}))) == ["c.txt"]
