"""KTO (arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast
from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.methods.method import Labels
from pairgrpo_jax.methods.preference import Offline, sides


@dataclass(frozen=True)
class Kto(Offline):
    """KTO (arXiv 2402.01306, eq. 8): each reply on its own, the chosen desirable and the rejected not.

    The reference point is measured once a batch, before its updates, on the replies to other prompts: the paper's where
    a batch gets one update.
    """

    name: ClassVar[str] = "kto"
    mismatched: ClassVar[bool] = True
    reference: ClassVar[bool] = True
    beta: Annotated[float, Above(0)] = 0.1
    """Steepness of the value of a log-ratio, per nat."""
    desirable_weight: Annotated[float, AtLeast(0)] = 1.0
    """Of chosen replies, the paper's lambda_D."""
    undesirable_weight: Annotated[float, AtLeast(0)] = 1.0
    """Of rejected ones, its lambda_U."""

    def signal(self, verdict, key, adaptive):
        """The pairs, and the reference point of the whole batch."""
        others = verdict.mismatched
        if others is None:
            raise ValueError("mismatched: kto needs the log-probabilities of replies to other prompts")
        ours, ref = (others.sequences(x) for x in (others.logp, others.ref_logp))
        alive = None if verdict.alive is None else jnp.broadcast_to(verdict.alive[:, None], ours.shape)
        point = core.kto_reference_point(ours, ref, alive)
        return Labels(verdict.alive_pairs, reference_point=jnp.broadcast_to(point, others.logp.shape[:1]))

    def objective(self, likelihoods, signal, adaptive):
        """The mean over replies."""
        ours, ref = (likelihoods.sequences(x) for x in (likelihoods.logp, likelihoods.ref_logp))
        (chosen, rejected, ref_chosen, ref_rejected), counted = sides(signal, ours, ref)
        terms = core.kto_loss.objective(
            jnp.stack([chosen, rejected], axis=1).reshape(-1),
            jnp.stack([ref_chosen, ref_rejected], axis=1).reshape(-1),
            jnp.tile(jnp.array([True, False]), len(chosen)),
            jnp.repeat(signal.reference_point, 2 * len(chosen) // len(ours)),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            mask=jnp.repeat(counted, 2),
        )
        margin = core.kl_k1(chosen, ref_chosen) - core.kl_k1(rejected, ref_rejected)
        accuracy = core.mean_term(ranked_right(margin), counted)
        return {"surrogate": terms.pop("kto"), "accuracy": accuracy} | terms
