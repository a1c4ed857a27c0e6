"""Methods that learn from pairs of a group: where the pairs come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.pairs import Scheme
from pairgrpo_jax.methods.method import Method, Verdict


@dataclass(frozen=True)
class PairMethod(Method):
    """Learns from pairs: those of a judge or a data set, or those that rewards make."""

    offline: ClassVar[bool] = True
    comparisons: ClassVar[bool] = True
    scheme: Scheme = "all"
    """How rewards become pairs."""
    margin: Annotated[float, AtLeast(0)] = 0.0
    """Reward gaps at or below it make no pair, in units of the reward (of the advantage, where a critic made it)."""

    def check_group(self, size):
        """Raises ValueError for an odd group that is to be matched."""
        if self.scheme == "matched" and size % 2:
            raise ValueError(f'candidates={size} must be even with scheme="matched"')

    def apart(self, scores):
        """Those with a gap that makes a pair."""
        return scores.max(-1) - scores.min(-1) > self.margin

    def pairs(self, verdict: Verdict, key: jax.Array) -> core.Pairs:
        """Pairs `[B,P]`, of weight 0 in groups that are not alive."""
        pairs = verdict.pairs
        if pairs is None:
            pairs = core.pairs_from_rewards(verdict.scores, scheme=self.scheme, margin=self.margin, key=key)
        return verdict._replace(pairs=pairs).alive_pairs
