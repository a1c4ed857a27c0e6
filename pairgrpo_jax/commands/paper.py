"""The page of many runs: tables with intervals, curves, versions and settings, all in one file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pairgrpo_jax.commands import html
from pairgrpo_jax.commands.comparison import compared, interval
from pairgrpo_jax.commands.plots import SERIES, colours_of, label_ends
from pairgrpo_jax.commands.stored import UNMEASURED, Stored, differences
from pairgrpo_jax.core.statistics import interquartile_interval, interquartile_mean
from pairgrpo_jax.training.run import flatten


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
    parts = [html.element("h1", f"{len(found)} runs"), f"<p>Made by {html.element('code', command)}.</p>"]
    if left:
        parts += ["<h2>Not counted</h2>", html.listed(left)]
    for runs in by_setting.values():
        parts += [html.element("h2", title(runs[0]))]
        if runs[0] is not found[0]:
            parts += ["<p>Other settings than the first table, so never counted with it:</p>"]
            parts += [html.listed(differences(found[0], runs[0]))]
        parts += section(runs)
    return html.page("Report", parts)


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
    quantity = runs[0].quantity
    parts = [html.element("p", f"Score: {quantity.words}."), html.table(table(methods))]
    if quantity != UNMEASURED:
        parts += [
            "<p>Interquartile mean over seeds with its 95% interval (Student's t on winsorised runs"
            f"{', cut at 0 and 1' if quantity.share else ''}); P(beats the first) by Newcombe's method 5. "
            "One run gives no interval.</p>",
            curves(methods),
            "<p>Line: interquartile mean over seeds; band: from the lowest seed to the highest, no interval.</p>",
        ]
    parts += ["<h3>Where it comes from</h3>", html.listed(origins(runs)), *commands(methods), "<h3>Settings</h3>"]
    flat = {name: dict(flatten(of[0].settings)) for name, of in methods.items()}
    names = sorted({key for of in flat.values() for key in of})
    rows = [
        ["setting", *flat],
        *([key, *(json.dumps(of[key]) if key in of else "" for of in flat.values())] for key in names),
    ]
    return [*parts, html.table(rows)]


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


def table(methods: dict[str, list[Stored]]) -> list[tuple[str, ...]]:
    """The scores of each method's last evaluations; the first is the baseline."""
    highest = max(abs(run.rows[-1]["score"]) for runs in methods.values() for run in runs)
    form = ".0f" if highest > 100 else ".3f"
    quantity = next(iter(methods.values()))[0].quantity

    def figures(scores: np.ndarray, runs: list[list[dict]], beats: str) -> tuple[str, ...]:
        if quantity == UNMEASURED:
            return "not measured", "–"
        low, high = np.clip(interquartile_interval(scores), *((0, 1) if quantity.share else (-np.inf, np.inf)))
        return f"{interquartile_mean(scores):{form}}" + interval(low, high, form), beats

    columns = ("score, IQM [95% interval]", "P(beats {first}) [95% interval]")
    lines = compared({name: [run.rows for run in runs] for name, runs in methods.items()}, columns, figures)
    seeds = (f"{len(runs)} ({', '.join(str(run.seed) for run in runs)})" for runs in methods.values())
    return [(*line, last) for line, last in zip(lines, ("seeds", *seeds))]


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
        ends.append([_curve(axis, name, colour, methods[name]) for name, colour in colours_of(piece.tolist()).items()])
        axis.set(xlabel="steps", ylabel="score")
        axis.grid(alpha=0.3)
    for axis, end in zip(axes.flat, ends):
        label_ends(axis, end)
    return html.svg(figure)


def _curve(axis: Any, name: str, colour: str, runs: list[Stored]) -> tuple[float, str, str]:
    """Draws where all seeds were evaluated, their interquartile mean and a band that holds them; the line's end."""
    each = [{row["steps"]: row["score"] for row in run.rows if "score" in row} for run in runs]
    steps = sorted(set.intersection(*(set(of) for of in each)))
    scores = np.array([[of[step] for step in steps] for of in each])
    middle = interquartile_mean(scores, axis=0)
    axis.plot(steps, middle, "o-", color=colour, markersize=3)
    axis.fill_between(steps, scores.min(0), scores.max(0), color=colour, alpha=0.12)
    return float(middle[-1]) if len(steps) else 0.0, name, colour


def commands(methods: dict[str, list[Stored]]) -> list[str]:
    """The command of each method's first run; nothing where no command gives its settings."""
    known = [command for runs in methods.values() if (command := runs[0].command)]
    if not known:
        return []
    return ["<p>The first run of each method; its others differ in the seed alone:</p>", html.listed(known, "code")]


def origins(runs: list[Stored]) -> list[str]:
    """Commits and versions, and which of them are not the same for all runs."""
    commits = sorted({run.commit[:12] or "not kept" for run in runs})
    lines = [f"commit: {', '.join(commits)}" + ("; rows of different commits" if len(commits) > 1 else "")]
    for name in sorted({name for run in runs for name in run.versions}):
        values = sorted({json.dumps(run.versions.get(name)) for run in runs})
        lines.append(f"{name}: {' and '.join(values)}")
    return lines
