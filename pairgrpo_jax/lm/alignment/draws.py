"""Groups as they are drawn and judged: which of them teach something, and what replies that run on cost.

What DAPO (arXiv 2503.14476) does beside its clip: dynamic sampling, and overlong replies left out or paid less for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax import core
from pairgrpo_jax.lm.alignment.batch import Batch, groups
from pairgrpo_jax.lm.alignment.signals import pair_metrics, verdict_metrics
from pairgrpo_jax.lm.rewards.shares import total
from pairgrpo_jax.methods import Method
from pairgrpo_jax.training import processes


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


def teaching(method: Method, draw: Draw) -> np.ndarray:
    """`[B]` bool: groups with a verdict that tells replies apart, of which one counts. All processes must call it."""
    scores, pairs, alive, counted = processes.fetch((draw.scores, draw.pairs, draw.batch.alive, draw.batch.counted))
    apart = method.apart(scores) if pairs is None else (pairs.weight > 0).any(-1)
    return (alive > 0) & apart & (True if counted is None else counted.any(-1))


def joined(draws: Sequence[Draw]) -> Draw:
    """All groups of several draws, in order, each as long as the longest."""
    width = max(draw.batch.completions.shape[-1] for draw in draws)
    draws = [draw._replace(batch=draw.batch.resized(width)) for draw in draws]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *draws)


def best(draw: Draw, teaches: np.ndarray, count: int) -> Draw:
    """The first `count` groups that teach something (`[B]` bool); where there are fewer, the first others after them,
    not alive and without a token that counts: they would add nothing to a mean. Where they would be counted in it,
    those that teach stand for them."""
    kept = np.argsort(~teaches, kind="stable")[:count]
    draw = jax.tree.map(lambda x: x[kept], draw)
    alive = draw.batch.alive * teaches[kept]
    batch = draw.batch._replace(lengths=draw.batch.lengths * (alive > 0)[:, None])
    if batch.stands_for is not None:
        each = batch.alive.sum() / max(alive.sum(), 1)
        batch = batch._replace(stands_for=np.full(len(kept), each, np.float32))
    return draw._replace(batch=batch._replace(alive=alive))


def told(figures: Sequence[Mapping[str, float]], live: Sequence[float]) -> dict[str, float]:
    """What several draws were logged with, as one.

    Args:
      figures: of each draw. A judge's counts, times and costs add up; of all else the mean.
      live: groups with a verdict, of each draw.
    """
    judge = [{name: x for name, x in row.items() if name.startswith("judge_")} for row in figures]
    found = total(judge)
    if "judge_seconds" in found:  # one draw after the other
        found["judge_seconds"] = sum(row["judge_seconds"] for row in judge)
    for name in figures[0].keys() - found.keys():
        values = np.array([row[name] for row in figures], float)
        weights = np.where(np.isfinite(values), live, 0)
        found[name] = float(np.average(values[weights > 0], weights=weights[weights > 0])) if weights.any() else np.nan
    return found


def on_host(tree: Any) -> Any:
    """Arrays of all devices as each process's own: small programs on all of them, run one by one, may wait for ever."""
    return jax.tree.map(jnp.asarray, processes.fetch(tree))


def known(draw: Draw, pairs: core.Pairs | None, prompts: int, alive: Any = None) -> core.Metrics:
    """`verdict_metrics` of what was drawn and `pair_metrics` of the `prompts` groups that are learned from: `pairs` of
    all groups, or of those whose `alive` is given."""
    every = (draw.batch.lengths, draw.batch.alive, draw.ended, draw.rewards)
    every, pairs, alive = on_host((every, pairs, alive))
    every, pairs = groups(every, len(draw.ended)), groups(pairs, prompts)
    return verdict_metrics(*every) | pair_metrics(every[1] if alive is None else alive, pairs)
