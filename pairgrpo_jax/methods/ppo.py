"""PPO (arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.methods.clipped import Clipped
from pairgrpo_jax.methods.method import Advantages


@dataclass(frozen=True)
class Ppo(Clipped):
    """PPO (arXiv 1707.06347, eq. 7): the clipped surrogate on a critic's advantages, averaged over all steps.

    The critic is the trainer's: it adds the value error (`core.value_terms`, eq. 9) for every method that has one.
    """

    name: ClassVar[str] = "ppo"
    critic: ClassVar[bool] = True

    def signal(self, verdict, key, adaptive):
        """Advantages normalised over all steps that count; 0 where all are equal."""
        scores, counted = verdict.scores, verdict.mask
        if counted is None:
            counted = jnp.ones_like(scores)
        elif scores.ndim == 2:
            scores = jnp.broadcast_to(scores[..., None], counted.shape)
        if verdict.alive is not None:
            counted = counted * jnp.expand_dims(verdict.alive, [*range(1, scores.ndim)])
        centred = scores - core.mean_term(scores, counted).mean
        std = jnp.sqrt(core.mean_term(jnp.square(centred), counted).mean)
        least, most = (jnp.where(counted > 0, scores, end) for end in (jnp.inf, -jnp.inf))
        equal = least.min() >= most.max()  # the rest would be rounding, divided by itself
        return Advantages(jnp.where(equal, 0, centred / (std + 1e-8)), verdict.alive)

    def objective(self, likelihoods, signal, adaptive):
        """`-min(rho A, clip(rho) A)`, the mean over all steps."""
        return self.surrogate(likelihoods, signal, aggregate="token_mean")
