"""The picture of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

# One for each method, in every picture; they can be told apart without seeing red or green (Okabe and Ito).
COLOURS = {"ppo": "#000000", "grpo": "#0072B2", "rank": "#56B4E9", "soft": "#E69F00", "hard": "#D55E00"}
COLOURS |= {"dpo": "#009E73", "ipo": "#CC79A7", "orpo": "#8C6D31", "simpo": "#7F7F7F", "kto": "#B8A800"}
# Of methods of your own.
_OWN = ("#6A3D9A", "#882255", "#332288", "#117733", "#661100", "#44AA99")
LEARNED_NOTHING = "#9A9A9A"  # of a random policy's line
SERIES = 6  # at most in a panel


def colour_of(method: str) -> str:
    """The colour of a method; one of your own has that of none here."""
    return COLOURS.get(method, _OWN[0])


def colours_of(rows: Sequence[str]) -> dict[str, str]:
    """Each row's colour: its method's (`"hard:value"` is Hard's), or one of its own where rows share a method."""
    methods = [re.split("[: ]", row)[0] for row in rows]
    if len(set(methods)) < len(rows):
        return dict(zip(rows, cycle((*COLOURS.values(), *_OWN))))
    own = cycle(_OWN)
    return {row: COLOURS.get(method) or next(own) for row, method in zip(rows, methods)}


def label_ends(axis: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names lines at the right of a panel, apart from each other where they end together.

    Args:
      axis: of matplotlib, all lines drawn.
      ends: height of each line's end, its name, its colour.
    """
    axis.autoscale_view()
    to_axis, ends = axis.transData + axis.transAxes.inverted(), sorted(ends)
    heights = [float(to_axis.transform((axis.get_xlim()[1], height))[1]) for height, _, _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + 0.06)
    for i in reversed(range(len(heights))):  # and none above the panel
        heights[i] = min(heights[i], 1 - 0.06 * (len(heights) - 1 - i))
    for height, (_, name, colour) in zip(heights, ends):
        at = {"xycoords": "axes fraction", "va": "center", "annotation_clip": False, "parse_math": False}
        axis.annotate(name, (1.01, height), color=colour, fontsize=8, **at)


def learning_curves(rows: list[dict], path: Path, title: str, colour: str) -> None:
    """Draws return, realised KL and policy std of one run against environment steps.

    Args:
      rows: of `metrics.jsonl`; values may be lists, one number per seed. One without a metric is left out of its curve.
      path: the PNG to write.
      title: above the picture.
      colour: the method's, of `COLOURS`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    panels = {"return": "return", "realised_kl": "KL(new || old) per iteration, nats", "std": "action std"}
    for axis, (name, label) in zip(axes, panels.items()):
        if there := [row for row in rows if name in row]:
            steps = np.array([row["steps"] for row in there]) / 1e6
            values = np.array([np.atleast_1d(row[name]) for row in there])
            axis.plot(steps, values, color=colour, alpha=0.35, linewidth=1)
            axis.plot(steps, values.mean(axis=1), color=colour, label="while training (stochastic)")
        axis.set(xlabel="environment steps, millions", ylabel=label)
        axis.grid(alpha=0.3)
    scored = [row for row in rows if "score" in row]
    axes[0].plot(
        [row["steps"] / 1e6 for row in scored],
        [np.mean(row["score"]) for row in scored],
        "o--",
        color="0.25",
        markersize=3,
        label="evaluation (deterministic)",
    )
    axes[0].legend(loc="lower right", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
