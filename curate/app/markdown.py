"""Text for the App's Markdown."""

from __future__ import annotations


def plain(text: str) -> str:
    """Return a text that Markdown shows as it is, in one line and in one cell of a table."""
    for mark in "\\`*_[]<>|#!":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
