"""Rows of a data set as dictionaries: a shipped one, local files, or the Hugging Face hub."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from pairgrpo_jax.lm.files.text_files import check_mark

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
SHIPPED = ("tiny", "tiny-helpful", "tiny-harmless")

Row = tuple[str, dict[str, Any]]  # where it is, for messages; its columns


def read_rows(source: str, split: str) -> Iterator[Row]:
    """Yields the rows of a data set; see `data.load_preferences` for `source` and `split`.

    Raises:
      ValueError: for a source that does not exist, cannot be reached, or is malformed, naming file and line.
    """
    path = Path(source)
    if source in SHIPPED:
        _require_split_of(source, split)
        return _shipped(source)
    if path.is_dir():
        return (row for file in _files(path, split) for row in _read_file(file))
    if path.exists():
        _require_split_of(path.name, split)
        return _read_file(path)
    name = source.split(":")[0]
    if (
        source.lower().endswith(_SUFFIXES)
        or len(name.split("/")) != 2
        or not all(name.split("/"))
        or name.startswith((".", "~"))
    ):
        known = ", ".join(SHIPPED)
        raise ValueError(f"{source}: no such file or folder, not a hub id (owner/name), and not one of {known}")
    return _hub(source, split)


def _shipped(name: str) -> Iterator[Row]:
    """The tiny set: one file, each row with its domain."""
    text = resources.files("pairgrpo_jax.lm").joinpath("assets/tiny.jsonl").read_text("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        row = json.loads(line)
        if name in ("tiny", f"tiny-{row['domain']}"):
            yield f"tiny:{number}", row


def _require_split_of(file: str, split: str) -> None:
    """Refuses a split that one file does not have: it is all, "train" by default, and what its name says."""
    if split not in ("all", "train") and not _says(file, split):
        raise ValueError(f"split={split!r}: {file} is one file without splits; leave it out")


def _says(name: str, split: str) -> bool:
    """Whether a file's name has this word: "latest_train" is not of test, nor "constrained" of train."""
    return re.search(f"(?<![A-Za-z]){re.escape(split)}(?![A-Za-z])", name) is not None


def _files(folder: Path, split: str) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.name.lower().endswith(_SUFFIXES))
    single = len(files) == 1 and split == "train"
    chosen = files if split == "all" or single else [p for p in files if _says(p.name, split)]
    if not chosen:
        names = ", ".join(p.name for p in files) or "no data file"
        raise ValueError(f"{folder}: no file for split {split!r} (has: {names}); name a file, or use split 'all'")
    return chosen


def _read_file(path: Path) -> Iterator[Row]:
    if not path.name.lower().endswith(_SUFFIXES):
        raise ValueError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    return _read_json(path)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as e:
        raise ValueError(f"{path}: not a readable parquet file: {e}") from e


def _read_json(path: Path) -> Iterator[Row]:
    """A list of objects, or one object a line. `datasets` would copy these to a cache of its own, unnumbered."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            check_mark(path, file.read(4))
        with opened(path, "rt", encoding="utf-8") as file:
            if ".jsonl" not in path.name.lower():
                text = file.read()
                whole = text.lstrip().startswith("[")
                lines: Any = json.loads(text) if whole else text.split("\n")
            else:
                lines, whole = file, False
            for number, line in enumerate(lines, 1):
                row = line if whole else json.loads(line.rstrip()) if line.strip() else None
                if row is not None:
                    yield f"{path}:{number}", _object(row, f"{path}:{number}")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8: {e}; `iconv -f ENCODING -t UTF-8` writes it so") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}:{number or e.lineno}: not JSON: {e.msg}, column {e.colno}") from e
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: not a readable gzip file: {e}") from e


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with named columns, got {type(row).__name__}")
    return row


def _hub(source: str, split: str) -> Iterator[Row]:
    """A data set of the hub, or of one of its configurations or folders after a colon."""
    import datasets

    name, _, subset = source.partition(":")
    try:
        configs = datasets.get_dataset_config_names(name) if subset else []
        where: dict[str, Any] = {"name": subset} if subset in configs else {"data_dir": subset} if subset else {}
        found: Any = datasets.load_dataset(name, **where)
    except Exception as e:  # network, permission and validation errors of the client
        raise ValueError(f"{source}: no such path, and the hub does not give it: {e}") from e
    names = [x for x in (split, f"{split}_prefs") if x in found]
    if not names:
        raise ValueError(f"{source}: no split {split!r}; it has {', '.join(found)}")
    return ((f"{source}:{split}:{i}", dict(row)) for i, row in enumerate(found[names[0]], 1))
