"""The guess from folders and file names: correct guesses, and above all no wrong ones."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.admin.layout import Layout, guess
from curate.index.intake import SourceRules, group_of, stratum_of, template_pattern
from curate.project import LimitsConfig, SourceConfig

SHIFTS = [
    f"line{line}/shift{shift}/coil{coil}/{n:04d}.jpg"
    for line in (1, 2)
    for shift in "AB"
    for coil in (7, 8)
    for n in (1, 2)
]
DEMO = [
    f"L{line}/cam{cam}/2024-05-0{day}/C{coil}_{n:03d}.png"
    for line in (1, 2)
    for cam in (0, 1)
    for day in (1, 2)
    for coil in (31, 32)
    for n in (1, 2)
]
FLAT = [
    f"line{line}_cam{cam}_coil{coil}_{n:04d}.bmp"
    for line in (1, 2)
    for cam in (0, 1)
    for coil in (5, 6)
    for n in (1, 2)
]


@pytest.mark.parametrize(
    ("paths", "stratum", "group"),
    [
        (SHIFTS, "line2/shiftB", "coil8"),
        (DEMO, "L2/cam1", "C32"),
        (FLAT, "line2/cam1", "coil6"),
        ([f"data/{path}" for path in SHIFTS], "line2/shiftB", "coil8"),
        ([f"A17_{n:04d}.jpg" for n in (1, 2)] + [f"A18_{n:04d}.jpg" for n in (1, 2)], None, "A18"),
        ([f"cam{cam}/{n:05d}.jpg" for cam in (0, 1) for n in range(9)], "cam1", None),
        ([f"img_{n:04d}.jpg" for n in range(20)], None, None),  # one name for all: no split could be drawn
        ([f"2024-05-01_{n:04d}.jpg" for n in range(9)], None, None),
        ([f"x{n}/y/a.jpg" for n in range(9)], None, None),  # could be anything
        ([f"samples/strips/{n}.jpg" for n in range(9)], None, None),
        ([f"cam-left/{n}_{'ab'[n % 2]}.jpg" for n in range(9)], "cam-left", None),
        ([f"night/L{n % 2}/{n}.jpg" for n in range(9)], "night/L0", None),
        (["a.jpg"], None, None),
        ([], None, None),
    ],
)
def test_what_paths_say(paths: list[str], stratum: str | None, group: str | None) -> None:
    layout = guess(paths)
    rules = rules_of(layout)
    last = paths[-1] if paths else ""
    assert stratum_of(last, rules) == stratum
    assert group_of(last, rules) == group


def rules_of(layout: Layout) -> SourceRules:
    from pathlib import Path

    SourceConfig(format="images", data=Path("x"), **layout.__dict__)  # what project.toml would refuse raises here
    template = template_pattern(layout.template) if layout.template else None
    group = re.compile(layout.group) if layout.group else None
    return SourceRules(Path("x"), LimitsConfig(), {}, frozenset(), False, template, layout.stratum, group)


def test_a_few_strange_files_do_not_spoil_the_guess() -> None:
    assert guess([*SHIFTS, "thumb.jpg"]) == guess(SHIFTS)
    half = [f"{n}.jpg" for n in range(len(SHIFTS))]
    assert guess([*SHIFTS, *half]).template is None


def test_file_names_that_differ_leave_what_the_folders_say() -> None:
    paths = [f"line{n % 2}/coil{n}/{'a_' * (n % 3)}{n}.jpg" for n in range(12)]
    layout = guess(paths)
    assert (layout.template, layout.stratum) == ("{line}/{coil}/{name}", "{line}")
    assert group_of(paths[3], rules_of(layout)) == "coil3"


NAMES = st.text(st.sampled_from("ab1_-. {}é/"), min_size=1, max_size=12)


@given(st.lists(NAMES, max_size=12))
def test_any_paths_give_a_layout_that_a_project_can_hold(paths: list[str]) -> None:
    rules = rules_of(guess(paths))
    for path in paths:
        stratum_of(path, rules)
        group_of(path, rules)
