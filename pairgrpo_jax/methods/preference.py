"""Methods that learn offline, from the chosen and the rejected sequence of a data set's pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.methods.method import Labels, Likelihoods, Method


@dataclass(frozen=True)
class Offline(Method):
    """Learns from a data set's pairs alone: candidate 0 of each group was chosen, candidate 1 rejected."""

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
        terms = loss.objective(*ours[:, :2].T, *ref[:, :2].T, mask=signal.counted, **options)
        return {"surrogate": terms.pop(self.name)} | terms

    def implicit_reward(self, likelihoods):
        """The log-ratio of a sequence to the reference, its mean over tokens with `length_normalize`."""
        ratio = core.kl_k1(likelihoods.logp, likelihoods.ref_logp)
        return likelihoods.sequences(ratio, self.length_normalize)
