"""Tables of methods, the first of which the others are compared with."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from pairgrpo_jax.core.statistics import improvement_interval, probability_of_improvement


def compared(
    rows: dict[str, list[list[dict]]],
    columns: tuple[str, ...],
    figures: Callable[[np.ndarray, list[list[dict]], str], tuple[str, ...]],
    score: Callable[[dict], float] = operator.itemgetter("score"),
) -> list[tuple[str, ...]]:
    """A head, and a line for each method.

    Args:
      rows: the metrics of each method, one list a seed; the first method is the baseline.
      columns: after the method's; `{first}` in one stands for the baseline.
      figures: `(scores, runs, how often it beats the baseline) -> cells`, scores of the runs' ends.
      score: of a row of metrics.
    """
    scores = {method: np.array([score(metrics[-1]) for metrics in runs]) for method, runs in rows.items()}
    first = next(iter(scores))
    lines = [("method", *(column.replace("{first}", first) for column in columns))]
    for method, runs in rows.items():
        beats = "–" if method == first else _beats(scores[method], scores[first])
        lines.append((method, *figures(scores[method], runs, beats)))
    return lines


def markdown(lines: list[tuple[str, ...]]) -> str:
    """The lines as a table, the first as its head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *rest))


def interval(low: float, high: float, form: str) -> str:
    """` [low, high]`, or nothing where one run gives none."""
    return "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"


def _beats(scores: np.ndarray, rival: np.ndarray) -> str:
    between = improvement_interval(scores, rival)
    return f"{probability_of_improvement(scores, rival):.2f}" + interval(*between, ".2f")
