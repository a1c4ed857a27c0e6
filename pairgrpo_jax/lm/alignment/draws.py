"""Groups as they are drawn and judged: which of them teach something, and what replies that run on cost.

What DAPO (arXiv 2503.14476) does beside its clip: dynamic sampling, and overlong replies left out or paid less for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pairgrpo_jax.lm.alignment.batch import Batch


class Draw(NamedTuple):
    """Groups that were sampled and judged.

    Attributes:
      batch: B groups.
      rewards: `[B,K]`, or None where a judge compared.
      scores: the rewards that are learned from, `[B,K]`; or None.
      pairs: `Pairs` `[B,P]` of a judge, or None.
      ended: `[B,K]`, 1 where a reply stopped by itself.
    """

    batch: Batch
    rewards: Any
    scores: Any
    pairs: Any
    ended: Any


def overlong_penalty(lengths: Any, longest: int, buffer: int) -> Any:
    """From 0 for replies of up to `longest - buffer` tokens, in a line, to 1 for those of `longest`; DAPO, eq. 13.

    Args:
      lengths: tokens of replies, `[B,K]`.
      longest: T, where replies are cut off.
      buffer: tokens over which it rises, >= 1.
    """
    return ((lengths - (longest - buffer)) / buffer).clip(0, 1)


def teaching(draw: Draw) -> np.ndarray:
    """`[B]` bool: groups with a verdict, and replies told apart by it, of which one counts."""
    apart = draw.scores.max(-1) > draw.scores.min(-1) if draw.pairs is None else (draw.pairs.weight > 0).any(-1)
    return (draw.batch.alive > 0) & apart & draw.batch.mask.any((1, 2))


def joined(draws: Sequence[Draw]) -> Draw:
    """All groups of several draws, in order."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *draws)


def best(draw: Draw, count: int) -> Draw:
    """The first `count` groups that teach something; where there are fewer, the first others too."""
    kept = np.argsort(~np.asarray(teaching(draw)), kind="stable")[:count]
    return jax.tree.map(lambda x: x[kept], draw)


def told(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What several draws were logged with, as one: a judge's counts and costs add up, of all else the mean."""

    def of(name: str) -> float:
        values = [row[name] for row in figures]
        adds = name.startswith("judge_") and name != "judge_latency"
        return sum(values) if adds else float(np.mean(values))

    return {name: of(name) for name in figures[0]}
