"""ORPO (arXiv 2403.07691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.preference import odds
from pairgrpo_jax.methods.preference import Offline, sides


@dataclass(frozen=True)
class Orpo(Offline):
    """ORPO (arXiv 2403.07691, eq. 6): likelihood of the chosen sequence, and the odds ratio; needs no reference."""

    name: ClassVar[str] = "orpo"
    ranks_alone: ClassVar[bool] = True
    weight: Annotated[float, AtLeast(0)] = 0.1
    """Of the odds-ratio term, the paper's lambda."""

    def objective(self, likelihoods, signal, adaptive):
        """The mean over pairs; the likelihood is the term `surrogate`."""
        (chosen, rejected), counted = sides(signal, likelihoods.sequences(likelihoods.logp, mean=True))
        terms = core.orpo_loss.objective(chosen, rejected, weight=self.weight, mask=counted)
        return {"surrogate": terms.pop("nll")} | terms

    def implicit_reward(self, likelihoods):
        """The log odds of the mean log-probability."""
        return odds(likelihoods.sequences(likelihoods.logp, mean=True))
