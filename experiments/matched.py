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
    first = rows[0][start] if isinstance(start, str) else start
    scores = np.array([row[name] for row in rows], float)
    return Curve(
        np.array([0.0, *(row["kl_reference"] for row in rows)]), np.vstack([np.full(scores.shape[1], first), scores])
    )


def score_at(curve: Curve, kl: float) -> np.ndarray | None:
    """Scores `[N]` where a run's straight lines between evaluations first pass a KL; None where they never do."""
    for i in range(1, len(curve.kl)):
        before, after = curve.kl[i - 1], curve.kl[i]
        if min(before, after) <= kl <= max(before, after):
            share = (kl - before) / (after - before) if after != before else 1.0
            return (1 - share) * curve.scores[i - 1] + share * curve.scores[i]
    return None


def matched(curves: dict[str, list[Curve]], distances: Sequence[float]) -> str:
    """A Markdown table of scores at each KL, with intervals over seeds and prompts; the first method is the baseline.

    Args:
      curves: of each method, in the order of the seeds.
      distances: the KLs, nats a reply.
    """
    first, *_ = curves
    head, lines = ("method",), []
    for kl in distances:
        head += (f"at {kl:g} nats, % [95% interval] (seeds)", f"less {first} [95% interval], P(more)")
    for method, runs in curves.items():
        cells = (method,)
        for kl in distances:
            pairs = [(score_at(mine, kl), score_at(rival, kl)) for mine, rival in zip(runs, curves[first])]
            apart = [mine - rival for mine, rival in pairs if mine is not None and rival is not None]
            cells += (_mean([x for curve in runs if (x := score_at(curve, kl)) is not None]),)
            cells += ("–" if method == first else _difference(apart),)
        lines.append(cells)
    return markdown([head, *lines])


def _mean(scores: list[np.ndarray]) -> str:
    if not scores:
        return "not reached"
    values = 100 * np.array(scores)
    return f"**{values.mean():.1f}**{interval(*crossed_interval(values), '.1f')} ({len(values)})"


def _difference(scores: list[np.ndarray]) -> str:
    if not scores:
        return "not reached"
    values = 100 * np.array(scores)
    sure = f", {crossed_probability(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{interval(*crossed_interval(values), '.1f')}{sure}"
