"""SimPO (arXiv 2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast
from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.core.terms import (
    as_float,
    masked,
    require_nonnegative,
    require_positive,
    require_rank,
    require_same_shape,
)
from pairgrpo_jax.methods.preference import Offline


@core.loss
def simpo_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    mask: jax.Array | None = None,
) -> core.Objective:
    """SimPO (arXiv 2405.14734, eq. 6): `-log sigmoid(beta * (chosen_logp - rejected_logp) - gamma)`.

    Args:
      chosen_logp: `[P]` *per-token mean* log-probabilities of the chosen sequences.
      rejected_logp: `[P]`, the same of the rejected sequences.
      beta: scale of the implicit reward, 2 to 2.5 in the paper.
      gamma: target margin of `beta * logp`, in nats; the paper's is 0.3 to 1.6, a gamma / beta of 0.1 to 0.8.
      mask: `[P]`, 0 for a pair that does not count; None: all do.

    Returns:
      `(loss, metrics)`, means over pairs; metrics `simpo`, `accuracy`, `chosen_reward`, `rejected_reward`.

    Raises:
      ValueError: if shapes differ, beta is not above 0 or gamma is negative.
    """
    require_rank("chosen_logp", chosen_logp, {1}, "[P], one number per sequence")
    require_same_shape(chosen_logp=chosen_logp, rejected_logp=rejected_logp, mask=mask)
    require_positive(beta=beta)
    require_nonnegative(gamma=gamma)
    chosen, rejected = (beta * masked(as_float(x), mask) for x in (chosen_logp, rejected_logp))
    return {
        "simpo": core.mean_term(-jax.nn.log_sigmoid(chosen - rejected - gamma), mask, 1.0),
        "accuracy": core.mean_term(ranked_right(chosen - rejected), mask),
        "chosen_reward": core.mean_term(chosen, mask),
        "rejected_reward": core.mean_term(rejected, mask),
    }


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
        means = likelihoods.sequences(likelihoods.logp, mean=True)
        terms = simpo_loss.objective(*means[:, :2].T, beta=self.beta, gamma=self.gamma, mask=signal.counted)
        return {"surrogate": terms.pop("simpo")} | terms

    def implicit_reward(self, likelihoods):
        """The mean log-probability."""
        return likelihoods.sequences(likelihoods.logp, mean=True)
