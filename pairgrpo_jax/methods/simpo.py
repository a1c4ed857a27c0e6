"""SimPO (arXiv 2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast
from pairgrpo_jax.methods.preference import Offline, sides


@dataclass(frozen=True)
class SimPo(Offline):
    """SimPO (arXiv 2405.14734, eq. 6): the margin of mean log-probabilities, beyond a target; needs no reference."""

    name: ClassVar[str] = "simpo"
    ranks_alone: ClassVar[bool] = True
    beta: Annotated[float, Above(0)] = 2.0
    """Scale of the implicit reward, a reply's mean log-probability."""
    gamma: Annotated[float, AtLeast(0)] = 1.0
    """Target margin between the rewards, in nats."""

    def objective(self, likelihoods, signal, adaptive):
        """The mean over pairs."""
        (chosen, rejected), counted = sides(signal, likelihoods.sequences(likelihoods.logp, mean=True))
        terms = core.simpo_loss.objective(chosen, rejected, beta=self.beta, gamma=self.gamma, mask=counted)
        return {"surrogate": terms.pop("simpo")} | terms

    def implicit_reward(self, likelihoods):
        """The mean log-probability."""
        return likelihoods.sequences(likelihoods.logp, mean=True)
