"""The page that a run leaves, in one file that needs nothing else, so that it can be sent to someone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from pairgrpo_jax.commands import html
from pairgrpo_jax.training.run import flatten, read_metrics

REPORT, REPLIES = "report.html", "replies.json"


def write_report(
    folder: Path,
    title: str,
    summary: Iterable[str],
    shown: Mapping[str, str],
    *,
    axis: str,
    command: str | None,
    after: Iterable[str],
    colour: str = "#0072B2",
) -> None:
    """Writes the page of the run in `folder`: summary, curves, video or replies, settings, what to do next.

    Args:
      folder: of the run, with its metrics, `config.json`, `versions.json`, and `cheetah.mp4` or `replies.json` if any.
      title: what the run was.
      summary: its figures in words.
      shown: metrics to draw and what they are called; those that the run does not have, or never as a number, are left
        out.
      axis: what `iteration` counts.
      command: that makes the run again, if there is one.
      after: commands that go on from here.
      colour: of the curves, the method's.
    """
    parts = [html.element("h1", title), html.listed(summary)]
    parts += [f"<p>The same run again: {html.element('code', command)}</p>"] if command else []
    parts += ["<h2>Curves</h2>", curves(read_metrics(folder), shown, axis, colour)]
    parts += [*_video(folder / "cheetah.mp4"), *_replies(folder / REPLIES)]
    for heading, name in (("Settings", "config.json"), ("Versions", "versions.json")):
        parts += [html.element("h2", heading), _settings(folder / name)]
    parts += ["<h2>What next</h2>", html.listed(after, "code")]
    (folder / REPORT).write_text(html.page(title, parts), encoding="utf-8")


def curves(rows: list[dict], shown: Mapping[str, str], axis: str, colour: str = "#0072B2") -> str:
    """An SVG element with a panel for each metric of the rows; pale lines are seeds, the dark one their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        name: words for name, words in shown.items() if any(np.isfinite(row.get(name, np.nan)).any() for row in rows)
    }
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
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
            place.xaxis.get_major_locator().set_params(integer=True)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        return html.svg(figure)


def _video(path: Path) -> list[str]:
    if not path.exists():
        return []
    data = base64.b64encode(path.read_bytes()).decode()
    return ["<h2>Video</h2>", f'<video controls loop src="data:video/mp4;base64,{data}"></video>']


def _replies(path: Path) -> list[str]:
    if not path.exists():
        return []
    kept = json.loads(path.read_text(encoding="utf-8"))
    parts = ["<h2>Replies</h2>", html.element("p", kept["about"])]
    for number, dialogue in enumerate(kept["replies"], 1):
        asked = [(message["role"], message["content"]) for message in dialogue["prompt"]]
        sides = [(scored(side, dialogue[side][1]), dialogue[side][0]) for side in ("before", "after")]
        parts += [html.element("h3", f"Prompt {number}"), html.table([*asked, *sides])]
    return parts


def scored(side: str, reward: float | None) -> str:
    """What stands beside a reply."""
    return side if reward is None else f"{side}, reward {reward:.2f}"


def _settings(path: Path) -> str:
    told = flatten(json.loads(path.read_text()))
    return html.table((name, json.dumps(value)) for name, value in told)
