"""Text and JSON files in UTF-8; a byte order mark is refused by its name."""

import codecs
import json
from pathlib import Path

# UTF-32 before UTF-16, whose mark its own begins with.
_MARKS = {codecs.BOM_UTF8: "UTF-8", codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
_MARKS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def check_mark(where: Path | str, head: bytes) -> None:
    """Raises ValueError naming the file if its first bytes are a byte order mark."""
    name = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if name is not None:
        remedy = "tail -c +4" if name == "UTF-8" else f"iconv -f {name} -t UTF-8"
        raise ValueError(f"{where}: begins with a {name} byte order mark (BOM); write it without one, with `{remedy}`")


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
      ValueError: naming the file, if it is missing or not a JSON object in UTF-8 without a byte order mark.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise ValueError(f"{path}: cannot read as JSON: {e}") from e
    check_mark(path, data)
    try:
        fields = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: cannot read as JSON: {e}") from e
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return fields
