"""The Python door with a real server: choose, push, annotate, pull, and simulate on what is labelled then."""

from __future__ import annotations

import curate
from curate.project import Project
from labeling.client import Studio
from tests.labeling.test_loop import annotate_all
from tests.train.conftest import works

__all__ = ["works"]


def test_a_whole_turn(works: Project, studio: Studio) -> None:
    project = curate.open(works.folder, quiet=True)
    assert project.embed("texture").embedded == 30
    chosen = project.select(budget=6)
    pushed = project.push(chosen)
    assert pushed.created == 6
    assert annotate_all(works, studio) == 6
    assert project.pull().labelled == 6
    assert set(chosen.view.values("status")) == {"labelled"}

    simulation = project.simulate(["random"], start="2", budget="3", rounds=1, seeds=1)
    assert list(simulation.table.index) == ["random"]
    assert simulation.report.is_file()
    assert all(line[:20] in simulation._repr_html_() for line in simulation.verdict)
