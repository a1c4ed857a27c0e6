"""KTO (arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast
from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.methods.method import Labels
from pairgrpo_jax.methods.preference import Offline


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
        ours, ref = (likelihoods.sequences(x)[:, :2] for x in (likelihoods.logp, likelihoods.ref_logp))
        terms = core.kto_loss.objective(
            ours.reshape(-1),
            ref.reshape(-1),
            jnp.tile(jnp.array([True, False]), len(ours)),
            jnp.repeat(signal.reference_point, 2),
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            mask=jnp.repeat(signal.counted, 2),
        )
        margin = core.kl_k1(ours, ref)
        accuracy = core.mean_term(ranked_right(margin[:, 0] - margin[:, 1]), signal.counted)
        return {"surrogate": terms.pop("kto"), "accuracy": accuracy} | terms
