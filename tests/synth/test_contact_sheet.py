"""The contact sheet tells the sizes that its one scale hides."""

from __future__ import annotations

import numpy as np
import pytest

from synth import contact_sheet


def crop(side: int, area: int) -> contact_sheet.Crop:
    mask = np.zeros((side, side), bool)
    mask.flat[:area] = True
    return np.full((side, side, 1), 128, np.uint8), mask


def test_every_picture_has_its_size_and_every_row_its_median(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageDraw

    written: list[str] = []
    plain = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], words: str, *more: object) -> None:
        written.append(words)
        plain(self, xy, words, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    rows = {"real": [crop(200, 3367), crop(100, 1000)], "passed": [crop(30, 70)]}
    page = contact_sheet.drawn({"inclusion of mould powder": rows}, "batch")
    assert written[1].splitlines() == ["inclusion of mould", "powder", "real", "2 of 2", "median area 2184"]
    assert {"200x200 px", "area 3367", "100x100 px", "30x30 px", "area 70"} <= set(written)
    assert page.height == contact_sheet.HEAD + 2 * contact_sheet._height() + contact_sheet.GAP
