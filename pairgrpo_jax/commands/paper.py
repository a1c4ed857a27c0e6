"""The page of many runs: tables with intervals, curves, versions and settings, all in one file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from pairgrpo_jax.commands.plots import COLOURS, SERIES, colour_of, label_ends
from pairgrpo_jax.commands.stored import Stored, differences
from pairgrpo_jax.core.statistics import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    probability_of_improvement,
)
from pairgrpo_jax.training.run import flatten

STYLE = """body { font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
svg { max-width: 100%; height: auto } code { background: #f4f4f4 }
table { border-collapse: collapse } td { border-bottom: 1px solid #ddd; padding: 0.1em 1em 0.1em 0 }"""


def page(found: list[Stored], left: list[str], command: str) -> str:
    """The page of all runs, a section for each setting.

    Args:
      found: the runs.
      left: what could not be counted, in words.
      command: that makes the page again.
    """
    by_setting: dict[str, list[Stored]] = {}
    for run in found:
        by_setting.setdefault(run.setting, []).append(run)
    parts = [f"<h1>{len(found)} runs</h1>", f"<p>Made by <code>{escape(command)}</code>.</p>"]
    if left:
        parts += ["<h2>Not counted</h2>", _listed(left)]
    for runs in by_setting.values():
        parts += [f"<h2>{escape(title(runs[0]))}</h2>"]
        if runs[0] is not found[0]:
            parts += ["<p>Other settings than the first table, so never counted with it:</p>"]
            parts += [_listed(differences(found[0], runs[0]))]
        parts += section(runs)
    head = f'<meta charset="utf-8"><title>Report</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def title(run: Stored) -> str:
    """What the runs of a section share, in a line."""
    named = ("env", "steps", "model", "data", "iterations")
    told = [
        f"{name} {run.settings[name]:,}" if isinstance(run.settings[name], (int, float)) else str(run.settings[name])
        for name in named
        if name in run.settings
    ]
    return ", ".join(told)


def section(runs: list[Stored]) -> list[str]:
    """Table, curves, origin and settings of runs that can be compared."""
    methods = rows_of(runs)
    parts = [_table(table(methods)), curves(methods)]
    parts += [
        "<p>Interquartile mean over seeds with its 95% interval (Student's t on winsorised runs); P(beats the first) "
        "by Newcombe's method 5. One run gives no interval.</p>"
    ]
    parts += ["<h3>Where it comes from</h3>", _listed(origins(runs)), "<h3>Settings</h3>"]
    flat = {name: dict(flatten(of[0].settings)) for name, of in methods.items()}
    names = sorted({key for of in flat.values() for key in of})
    rows = [
        ["setting", *flat],
        *([key, *(json.dumps(of[key]) if key in of else "" for of in flat.values())] for key in names),
    ]
    return [*parts, _table(rows)]


def rows_of(runs: list[Stored]) -> dict[str, list[Stored]]:
    """The runs by method; one that was run with other settings of its own has a row for each, `hard #2`."""
    by_config: dict[str, dict[str, list[Stored]]] = {}
    for run in runs:
        by_config.setdefault(run.method, {}).setdefault(run.config, []).append(run)
    return {
        method if i == 0 else f"{method} #{i + 1}": own
        for method, configs in by_config.items()
        for i, own in enumerate(configs.values())
    }


def table(methods: dict[str, list[Stored]]) -> list[list[str]]:
    """The scores of each method's last evaluations; the first is the baseline."""
    scores = {name: np.array([run.rows[-1]["score"] for run in runs]) for name, runs in methods.items()}
    first, digits = next(iter(scores)), 0 if max(np.abs(x).max() for x in scores.values()) > 100 else 3
    rows = [["method", "score, IQM", "95% interval", f"P(beats {first})", "95% interval", "seeds"]]
    for name, own in scores.items():
        beats = f"{probability_of_improvement(own, scores[first]):.2f}" if name != first else "–"
        between = _between(improvement_interval(own, scores[first]), 2) if name != first else "–"
        seeds = ", ".join(str(run.seed) for run in methods[name])
        middle = f"{interquartile_mean(own):.{digits}f}"
        rows.append(
            [name, middle, _between(interquartile_interval(own), digits), beats, between, f"{len(own)} ({seeds})"]
        )
    return rows


def curves(methods: dict[str, list[Stored]]) -> str:
    """An SVG element: scores against steps, at most `SERIES` methods in a panel, each named at its end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pieces = np.array_split(list(methods), -(-len(methods) // SERIES))
    figure, axes = plt.subplots(
        1, len(pieces), figsize=(6.5 * len(pieces), 4), layout="constrained", sharey=True, squeeze=False
    )
    ends: list[list[tuple[float, str, str]]] = []
    for axis, piece in zip(axes.flat, pieces):
        ends.append([_curve(axis, name, colour, methods[name]) for name, colour in _colours(piece.tolist()).items()])
        axis.set(xlabel="steps", ylabel="score")
        axis.grid(alpha=0.3)
    for axis, end in zip(axes.flat, ends):
        label_ends(axis, end)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _curve(axis: Any, name: str, colour: str, runs: list[Stored]) -> tuple[float, str, str]:
    """Draws where all seeds were evaluated; the line's end."""
    each = [{row["steps"]: row["score"] for row in run.rows if "score" in row} for run in runs]
    steps = sorted(set.intersection(*(set(of) for of in each)))
    scores = np.array([[of[step] for step in steps] for of in each])
    middle = interquartile_mean(scores, axis=0)
    axis.plot(steps, middle, "o-", color=colour, markersize=3)
    axis.fill_between(steps, scores.min(0), scores.max(0), color=colour, alpha=0.12)
    return float(middle[-1]) if len(steps) else 0.0, name, colour


def _colours(names: list[str]) -> dict[str, str]:
    """Each row's colour: its method's, or one of its own where rows share a method."""
    methods = [name.split()[0].split(":")[0] for name in names]
    own = len(set(methods)) == len(names)
    return {name: colour_of(m) if own else list(COLOURS.values())[i] for i, (name, m) in enumerate(zip(names, methods))}


def origins(runs: list[Stored]) -> list[str]:
    """Commits and versions, and which of them are not the same for all runs."""
    commits = sorted({run.commit[:12] or "not kept" for run in runs})
    lines = [f"commit: {', '.join(commits)}" + ("; rows of different commits" if len(commits) > 1 else "")]
    for name in sorted({name for run in runs for name in run.versions}):
        values = sorted({json.dumps(run.versions.get(name)) for run in runs})
        lines.append(f"{name}: {' and '.join(values)}")
    return lines


def _between(ends: tuple[float, float], digits: int) -> str:
    return "–" if np.isnan(ends[0]) else f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def _table(rows: list[list[str]]) -> str:
    cells = [[f"<td>{escape(cell)}</td>" for cell in row] for row in rows]
    return "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table>"


def _listed(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
