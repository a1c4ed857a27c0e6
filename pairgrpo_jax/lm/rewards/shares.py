"""Judging by several processes: each asks about its own share of the prompts, and all hear all verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pairgrpo_jax.lm.rewards.sources import Judgement
from pairgrpo_jax.training import processes

Verdicts = tuple[Judgement, dict[str, np.ndarray]]


def by_share(rows: int, judge: Callable[[slice], Verdicts]) -> Verdicts:
    """What `sources.judged` says of `rows` prompts, each process asking about its own; of too few, all about all.

    Args:
      rows: B.
      judge: `slice -> (Judgement, rewards by name)` of these prompts.

    Raises:
      PeerError: where it failed in another process; in that one, what it raised.
    """
    if processes.count() == 1:
        return judge(slice(rows))
    if rows < processes.count():
        return processes.together(lambda: judge(slice(rows)))
    judgement, each = processes.together(lambda: judge(processes.share(rows)))
    rewards, pairs, failed, each = processes.join((judgement.rewards, judgement.pairs, judgement.failed, each))
    return Judgement(rewards, pairs, failed, total(processes.gather(dict(judgement.metrics)))), each


def total(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of a judge over processes: sums, but for the longest time and the mean latency of a question."""
    found = {name: sum(each[name] for each in metrics) for name in metrics[0]}
    if "judge_seconds" in found:
        found["judge_seconds"] = max(each["judge_seconds"] for each in metrics)
    if "judge_latency" in found:
        weighted = (each["judge_latency"] * each["judge_questions"] for each in metrics)
        found["judge_latency"] = sum(weighted) / max(found["judge_questions"], 1)
    return found
