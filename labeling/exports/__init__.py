"""Exporters of this room, found beside those of `curate.exports`."""
