"""Methods where they have gone equally far: the score of each at the same KL to the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pairgrpo_jax.commands.comparison import interval, markdown
from pairgrpo_jax.core.statistics import crossed_interval, crossed_probability


class Curve(NamedTuple):
    """Evaluations of one run, the start before them.

    Attributes:
      kl: `[E]`, nats a reply from the start, in order of training.
      scores: `[E,N]`, of each held-out prompt; those of the start are its mean.
    """

    kl: np.ndarray
    scores: np.ndarray


def curve_of(metrics: Sequence[dict], name: str, start: str | float) -> Curve:
    """The curve of a run's rows.

    Args:
      metrics: rows of `metrics.jsonl`.
      name: of the scores of each prompt.
      start: of the mean of the start, or its value.
    """
    rows = [row for row in metrics if name in row and "kl_reference" in row]
    if not rows:
        raise ValueError(f"results: no evaluation with {name} and kl_reference; make the runs again")
    first = start_of(rows, start)
    scores = np.array([row[name] for row in rows], float)
    return Curve(
        np.array([0.0, *(row["kl_reference"] for row in rows)]), np.vstack([np.full(scores.shape[1], first), scores])
    )


def start_of(rows: Sequence[dict], start: str | float) -> float:
    """The mean score of the start: the metric of a run's first evaluation that is named so, or the value."""
    return rows[0][start] if isinstance(start, str) else start


def score_at(curve: Curve, kl: float) -> np.ndarray | None:
    """Scores `[N]` where a run first passes a KL, on straight lines between its evaluations against the KL's root.

    Scores rise about with the root (arXiv 2210.10760): lines against the KL itself would lie below the path where
    evaluations are far apart. None where the run never gets there, or where its first evaluation is beyond twice the
    KL: nothing was measured near it.
    """
    if curve.kl[1] > 2 * kl:
        return None
    roots, root = np.sqrt(np.maximum(curve.kl, 0)), np.sqrt(kl)
    for i in range(1, len(roots)):
        before, after = roots[i - 1], roots[i]
        if min(before, after) <= root <= max(before, after):
            share = (root - before) / (after - before) if after != before else 1.0
            return (1 - share) * curve.scores[i - 1] + share * curve.scores[i]
    return None


def matched(curves: dict[str, dict[int, Curve]], distances: Sequence[float]) -> str:
    """A Markdown table of scores at each KL, with intervals over seeds and prompts; the first method is the baseline.

    Args:
      curves: of each method, by seed; a difference is one between runs of the same seed, of which both got there, so
        that it need not be that of the two means.
      distances: the KLs, nats a reply.
    """
    first, *_ = curves
    head: tuple[str, ...] = ("method",)
    lines: dict[str, tuple[str, ...]] = {method: (method,) for method in curves}
    for kl in distances:
        head += (
            f"at {kl:g} nat{'s' * (kl != 1)}, % [95% interval] (seeds)",
            f"less {first} [95% interval], P(more) (pairs)",
        )
        scores = {method: _reached(runs, kl) for method, runs in curves.items()}
        for method, mine in scores.items():
            reached = [*mine.values()]
            apart = [score - scores[first][seed] for seed, score in mine.items() if seed in scores[first]]
            sure = f", {crossed_probability(np.array(apart)):.2f}" if len(apart) > 1 else ""
            sure += f" ({len(apart)})"
            lines[method] += (_mean(reached, ".1f", f" ({len(reached)})"),)
            lines[method] += ("–" if method == first else _mean(apart, "+.1f", sure),)
    return markdown([head, *lines.values()])


def _reached(runs: dict[int, Curve], kl: float) -> dict[int, np.ndarray]:
    """The scores of the seeds that have any there."""
    found = {seed: score_at(curve, kl) for seed, curve in runs.items()}
    return {seed: score for seed, score in found.items() if score is not None}


def _mean(scores: list[np.ndarray], form: str, more: str) -> str:
    """Of runs and prompts, in percent, with its interval and what is to be said beside it."""
    if not scores:
        return "not measured"
    values = 100 * np.array(scores)
    bold, (low, high) = "", crossed_interval(values)
    if not form.startswith("+"):  # a share, not a difference of two
        bold, (low, high) = "**", np.clip((low, high), 0, 100)
    return f"{bold}{values.mean():{form}}{bold}{interval(low, high, '.1f')}{more}"
