"""The pictures of comparisons."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pairgrpo_jax.commands.plots import COLOURS
from pairgrpo_jax.core.statistics import interquartile_mean


def colours_of(rows: list[str]) -> dict[str, str]:
    """Each row's colour: its method's (`"hard:value"` is Hard's), or one of its own where rows share a method."""
    methods = [re.split("[: ]", row)[0] for row in rows]
    alike = len(set(methods)) < len(rows)
    return {row: f"C{i % 10}" if alike else COLOURS[method] for i, (row, method) in enumerate(zip(rows, methods))}


def comparison(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Draws the interquartile mean over seeds of return (against steps and wall-clock) and realised KL, per method.

    Args:
      runs: method -> one list of `metrics.jsonl` rows per seed.
      path: the PNG to write.
      title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), constrained_layout=True)
    colours = colours_of(list(runs))
    for method, seeds in runs.items():
        scored = [[row for row in rows if "score" in row] for rows in seeds]
        steps = np.array([row["steps"] for row in scored[0]]) / 1e6
        scores = np.array([[np.mean(row["score"]) for row in rows] for rows in scored])
        seconds = np.median([[row["seconds"] for row in rows] for rows in scored], axis=0)
        for axis, x in zip(axes, (steps, seconds)):
            axis.plot(x, interquartile_mean(scores, axis=0), label=method, color=colours[method])
            axis.fill_between(x, scores.min(0), scores.max(0), color=colours[method], alpha=0.12)
        kl = np.median([[np.mean(row["realised_kl"]) for row in rows] for rows in seeds], axis=0)
        axes[2].semilogy(np.array([row["steps"] for row in seeds[0]]) / 1e6, kl, color=colours[method], linewidth=1)
    axes[0].set(xlabel="environment steps, millions", ylabel="return, deterministic")
    axes[1].set(xlabel="seconds", ylabel="return, deterministic")
    axes[2].set(xlabel="environment steps, millions", ylabel="KL(new || old) per iteration, nats")
    axes[0].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title}: interquartile mean over seeds, band from lowest to highest")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def success(runs: dict[str, list[list[dict]]], path: Path, title: str) -> None:
    """Draws the share of right answers against minutes and against KL to the start, per method, each named at its end.

    Args:
      runs: method -> one list of `metrics.jsonl` rows per seed.
      path: the PNG to write.
      title: above the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
    colours = colours_of(list(runs))
    for method, seeds in runs.items():
        scored = [[row for row in rows if "score" in row] for rows in seeds]
        right = 100 * np.array([[row["score"] for row in rows] for rows in scored])
        minutes = np.median([[row["seconds"] / 60 for row in rows] for rows in scored], axis=0)
        kl = np.mean([[row["kl_reference"] for row in rows] for rows in scored], axis=0)
        color = colours[method]
        for axis, x in zip(axes, (minutes, kl)):
            mean = right.mean(axis=0)
            axis.plot(x, mean, "o-", color=color, markersize=3)
            axis.annotate(method, (x[-1], mean[-1]), (5, 0), textcoords="offset points", color=color)
        axes[0].fill_between(minutes, right.min(0), right.max(0), color=color, alpha=0.12)
    axes[0].set(xlabel="minutes, median over seeds", ylabel="held-out sums answered rightly, %", ylim=(0, 100))
    axes[1].set(xlabel="KL to the start, nats a reply")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.margins(x=0.12)
    figure.suptitle(f"{title}: mean over seeds, band from lowest to highest")
    figure.savefig(path, dpi=130)
    plt.close(figure)
