"""The pictures of comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.matched import start_of
from pairgrpo_jax.commands.plots import LEARNED_NOTHING, SERIES, colours_of, label_ends
from pairgrpo_jax.core.statistics import interquartile_interval, interquartile_mean


def _pieces(runs: dict[str, list[list[dict]]]) -> list[dict[str, list[list[dict]]]]:
    """The rows in pieces of at most `SERIES`, of about the same size."""
    names = np.array_split(list(runs), -(-len(runs) // SERIES))
    return [{name: runs[name] for name in piece.tolist()} for piece in names]


def comparison(runs: dict[str, list[list[dict]]], path: Path, title: str, learned_nothing: float | None = None) -> None:
    """Draws the interquartile mean over seeds of return, and realised KL, per method, against environment steps.

    Each is named at its end; more than `SERIES` are drawn in rows of panels. Seconds are left out: runs of a comparison
    share their machine with others.

    Args:
      runs: method -> one list of `metrics.jsonl` rows per seed.
      path: the PNG to write.
      title: above the picture.
      learned_nothing: return of a random policy, for a line.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pieces = _pieces(runs)
    size = (13, 4.8 * len(pieces))
    figure, axes = plt.subplots(len(pieces), 2, figsize=size, layout="constrained", squeeze=False, sharey="col")
    ends = [_compared(row, piece, learned_nothing) for row, piece in zip(axes, pieces)]
    for row, of_row in zip(axes, ends):
        for axis, end in zip(row, of_row):
            label_ends(axis, end)
    figure.suptitle(f"{title}: interquartile mean over seeds and its 95% interval")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _compared(axes: Any, runs: dict[str, list[list[dict]]], learned_nothing: float | None) -> tuple[list, list]:
    """Draws a row of panels; where the lines of each end, see `label_ends`."""
    colours, ends = colours_of(list(runs)), ([], [])
    for method, seeds in runs.items():
        scored = [[row for row in rows if "score" in row] for rows in seeds]
        steps = np.array([row["steps"] for row in scored[0]]) / 1e6
        scores = np.array([[np.mean(row["score"]) for row in rows] for rows in scored])
        middle = interquartile_mean(scores, axis=0)
        low, high = np.transpose([interquartile_interval(column) for column in scores.T])
        axes[0].plot(steps, middle, color=colours[method])
        axes[0].fill_between(steps, low, high, color=colours[method], alpha=0.12)
        ends[0].append((middle[-1], method, colours[method]))
        kl = np.median([[np.mean(row["realised_kl"]) for row in rows] for rows in seeds], axis=0)
        axes[1].semilogy(np.array([row["steps"] for row in seeds[0]]) / 1e6, kl, color=colours[method], linewidth=1)
        ends[1].append((kl[-1], method, colours[method]))
    if learned_nothing is not None:
        axes[0].axhline(learned_nothing, color=LEARNED_NOTHING, linestyle="--", linewidth=1)
        ends[0].append((learned_nothing, "random policy", LEARNED_NOTHING))
    axes[0].set(xlabel="environment steps, millions", ylabel="return, deterministic")
    axes[1].set(xlabel="environment steps, millions", ylabel="KL(new || old) per iteration, nats; median over seeds")
    for axis in axes:
        axis.grid(alpha=0.3)
    return ends


def success(
    runs: dict[str, list[list[dict]]],
    path: Path,
    title: str,
    *,
    label: str,
    start: str | float,
    score: Callable[[dict], float],
) -> None:
    """Draws a share, of right answers say, against batches and KL to the start, per method, from the start to the end,
    where it is named. Minutes are of one machine, and of what else it did.

    Args:
      runs: method -> one list of `metrics.jsonl` rows per seed.
      path: the PNG to write.
      title: above the picture.
      label: what the share is of.
      start: metric of the share of the start, or its value.
      score: the share, of a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
    colours, ends = colours_of(list(runs)), ([], [])
    for method, seeds in runs.items():
        scored = [[row for row in rows if "score" in row] for rows in seeds]
        right = 100 * np.array([[start_of(rows, start), *map(score, rows)] for rows in scored])
        batches = [0, *(row["iteration"] for row in scored[0])]
        kl = np.mean([[0, *(row["kl_reference"] for row in rows)] for rows in scored], axis=0)
        color = colours[method]
        for axis, x, end in zip(axes, (batches, kl), ends):
            mean = right.mean(axis=0)
            axis.plot(x, mean, "o-", color=color, markersize=3)
            end.append((mean[-1], method, color))
        axes[0].fill_between(batches, right.min(0), right.max(0), color=color, alpha=0.12)
    axes[0].set(xlabel="batches", ylabel=label, ylim=(0, 100))
    axes[1].set(xlabel="KL to the start, nats a reply")
    for axis, end in zip(axes, ends):
        axis.grid(alpha=0.3)
        label_ends(axis, end)
    figure.suptitle(f"{title}: mean over seeds, band from lowest to highest")
    figure.savefig(path, dpi=130)
    plt.close(figure)
