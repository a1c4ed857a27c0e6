"""A page of many runs, in one file that needs nothing else.

`pairgrpo report --folder runs` makes that of all finished runs below a folder: of run folders, and of result files
that `experiments.compare`, `experiments.sums` and `experiments.preferences` leave. A table is of one setting; what is
not finished or cannot be read is named, and the rest is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pairgrpo_jax.commands import paper, stored
from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.core.bounds import Settings


@dataclass(frozen=True)
class Report(Settings):
    """A page of many runs."""

    folder: Path = Path("runs")
    """Where the runs, or their results, are."""
    output: Path = Path("report.html")
    """The page."""


def main(words: Sequence[str]) -> int:
    """Writes the page of many runs, and says where it is and what it leaves out."""
    args = parse(Report(), words, "pairgrpo report", __doc__)
    found, left = stored.read_stored(args.folder)
    text = paper.page(found, left, f"pairgrpo report --folder {args.folder}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    for line in left:
        print(f"not counted: {line}")
    print(f"{len(found)} runs in {args.output}")
    return 0
