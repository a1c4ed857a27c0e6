"""Soft-Pair-GRPO (arXiv 2605.06375)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.methods.clipped import StepRules
from pairgrpo_jax.methods.method import Labels
from pairgrpo_jax.methods.pairs import PairMethod


@dataclass(frozen=True)
class SoftPair(StepRules, PairMethod):
    """Soft-Pair-GRPO (arXiv 2605.06375): GRPO on +1 for the preferred candidate of a pair, -1 for the rejected."""

    name: ClassVar[str] = "soft"
    beta: Annotated[float, AtLeast(0)] = 0.01
    """Weight of KL(pi_theta || pi_old), per nat."""

    def signal(self, verdict, key, adaptive):
        """The pairs."""
        return Labels(self.pairs(verdict, key))

    def objective(self, likelihoods, signal, adaptive):
        """The clipped surrogate on pair rewards, and the KL to pi_old as the term `kl_penalty`."""
        terms = core.soft_pair_grpo_loss.objective(
            likelihoods.logp,
            likelihoods.old_logp,
            signal.pairs,
            mask=likelihoods.mask,
            kl=likelihoods.kl_old(signal.counted),
            beta=self.beta,
            **self.rules,
        )
        return {"surrogate": terms.pop("policy"), "kl_penalty": terms.pop("kl")} | terms
