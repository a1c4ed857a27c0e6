"""Pages in one file that needs nothing else, so that it can be sent to someone: of a run, and of many runs.

`pairgrpo report --folder docs/results` makes the page of all finished runs below a folder: of result files that
`experiments.compare` and `experiments.sums` leave, and of run folders. A table is of one setting; what is not finished
or cannot be read is named, and the rest is made.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from pairgrpo_jax.commands import paper, stored
from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.core.bounds import Settings
from pairgrpo_jax.training.run import flatten, read_metrics

REPORT = "report.html"
_STYLE = """body { font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
svg, video { max-width: 100%; height: auto } pre { white-space: pre-wrap } code, pre { background: #f4f4f4 }
table { border-collapse: collapse } td { border-bottom: 1px solid #ddd; padding: 0.1em 1em 0.1em 0 }"""


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


def write_report(
    folder: Path,
    title: str,
    summary: Iterable[str],
    shown: Mapping[str, str],
    *,
    axis: str,
    after: Iterable[str],
    colour: str = "#0072B2",
) -> None:
    """Writes the page of the run in `folder`: summary, curves, video or replies, settings, what to do next.

    Args:
      folder: of the run, with its metrics, `config.json`, `versions.json`, and `cheetah.mp4` or `replies.md` if any.
      title: what the run was.
      summary: its figures in words.
      shown: metrics to draw and what they are called; those that the run does not have are left out.
      axis: what `iteration` counts.
      after: commands that go on from here.
      colour: of the curves, the method's.
    """
    parts = [f"<h1>{escape(title)}</h1>", _listed(map(escape, summary)), "<h2>Curves</h2>"]
    parts += [curves(read_metrics(folder), shown, axis, colour)]
    parts += [*_video(folder / "cheetah.mp4"), *_replies(folder / "replies.md")]
    for heading, name in (("Settings", "config.json"), ("Versions", "versions.json")):
        parts += [f"<h2>{heading}</h2>", _table(folder / name)]
    parts += ["<h2>What next</h2>", _listed(f"<code>{escape(command)}</code>" for command in after)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"
    (folder / REPORT).write_text(page, encoding="utf-8")


def curves(rows: list[dict], shown: Mapping[str, str], axis: str, colour: str = "#0072B2") -> str:
    """An SVG element with a panel for each metric of the rows; pale lines are seeds, the dark one their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {name: words for name, words in shown.items() if any(name in row for row in rows)}
    with plt.rc_context({"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}):
        across = min(3, max(1, len(panels)))
        down = -(-len(panels) // across) or 1
        size = (3.6 * across, 2.6 * down)
        figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
        for place, (name, words) in zip(axes.flat, panels.items()):
            x = [row["iteration"] for row in rows if name in row]
            y = np.array([np.atleast_1d(row[name]) for row in rows if name in row], float)
            dots = "o-" if len(x) < 30 else "-"
            place.plot(x, y, color=colour, alpha=0.35, linewidth=0.8)
            place.plot(x, y.mean(axis=1), dots, color=colour, markersize=3)
            place.set(title=words, xlabel=axis)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _video(path: Path) -> list[str]:
    if not path.exists():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return ["<h2>Video</h2>", f'<video controls loop src="data:video/mp4;base64,{data}"></video>']


def _replies(path: Path) -> list[str]:
    if not path.exists():
        return []
    return ["<h2>Replies</h2>", f"<pre>{escape(path.read_text(encoding='utf-8'))}</pre>"]


def _table(path: Path) -> str:
    settings = dict(flatten(json.loads(path.read_text())))
    rows = [f"<tr><td>{escape(name)}</td><td>{escape(json.dumps(value))}</td></tr>" for name, value in settings.items()]
    return f"<table>{''.join(rows)}</table>"


def _listed(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
