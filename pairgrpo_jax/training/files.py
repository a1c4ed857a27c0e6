"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, whenever the process is killed; one that is there is replaced."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
