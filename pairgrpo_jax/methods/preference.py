"""Methods that learn offline, from the chosen and the rejected sequence of a data set's pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.pairs import usable_pairs
from pairgrpo_jax.methods.method import Labels, Likelihoods, Method


def sides(signal: Labels, *sequences: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Of each `[B,K]`: the values of the preferred and of the rejected candidate of every pair, `[B*P]` each.

    Beside them `[B*P]`, 0 for a pair that does not count. The size of a weight does not matter to these methods.

    Raises:
      ValueError: for pairs that make no sense; see `core.pairs.usable_pairs`.
    """
    pairs, _ = usable_pairs(signal.pairs, *sequences[0].shape)
    places = (pairs.preferred, pairs.rejected)
    each = [jnp.take_along_axis(x, place, axis=1).reshape(-1) for x in sequences for place in places]
    return each, (pairs.weight > 0).astype(jnp.float32).reshape(-1)


@dataclass(frozen=True)
class Offline(Method):
    """Learns from pairs alone: a data set's, where candidate 0 was chosen and candidate 1 rejected, or a judge's."""

    online: ClassVar[bool] = False
    offline: ClassVar[bool] = True
    comparisons: ClassVar[bool] = True
    ratio: ClassVar[bool] = False

    def signal(self, verdict, key, adaptive):
        """The pairs as they are, of weight 0 in groups that are not alive."""
        return Labels(verdict.alive_pairs)


@dataclass(frozen=True)
class Implicit(Offline):
    """Learns from the margin of implicit rewards, log-ratios to the reference."""

    reference: ClassVar[bool] = True
    length_normalize: bool = False
    """Mean instead of sum of a sequence's log-probabilities."""

    def terms(self, loss: core.terms.Loss, likelihoods: Likelihoods, signal: Labels, **options: Any) -> core.Objective:
        """Those of a loss of both sequences under the policy and the reference, over the pairs that count."""
        ours, ref = (likelihoods.sequences(x, self.length_normalize) for x in (likelihoods.logp, likelihoods.ref_logp))
        each, counted = sides(signal, ours, ref)
        terms = loss.objective(*each, mask=counted, **options)
        return {"surrogate": terms.pop(self.name)} | terms
