"""Hard-Pair-GRPO (arXiv 2605.06375)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast, Within, require_idle
from pairgrpo_jax.core.hard import FLOOR, Fit, TrustRegion
from pairgrpo_jax.core.surrogate import Aggregate
from pairgrpo_jax.methods.method import Adaptive, Labels
from pairgrpo_jax.methods.pairs import PairMethod


@dataclass(frozen=True)
class HardPair(PairMethod):
    """Hard-Pair-GRPO (arXiv 2605.06375): fits a target that moves probability from rejected to preferred candidates."""

    name: ClassVar[str] = "hard"
    delta_0: Annotated[float, AtLeast(0)] = 0.02
    """Probability mass moved at the start per pair of weight 1; candidates start at 1/K each. Scheme "all" weighs each
    pair 1/(K-1)."""
    delta_gamma: Annotated[float, Within(0, 1, "(]")] = 0.98
    """Factor of delta per batch."""
    fit: Fit = "reverse"
    """KL(p_theta || q) or KL(q || p_theta)."""
    trust_region: TrustRegion = "hinge"
    """A hinge of fixed weight, or a multiplier that learns to hold the policy's KL at the radius."""
    hinge: Literal["candidates", "tokens"] = "candidates"
    """KL of the hinge: of the candidate distribution, or of the policy, the mean over tokens (control steps)."""
    beta: Annotated[float, AtLeast(0)] = 0.01
    """Radius of the trust region, in nats."""
    alpha: Annotated[float, AtLeast(0)] = 0.5
    """Weight of the hinge beyond the radius; 0: no trust region."""
    project_target: bool = False
    """Shrink delta in each group until KL(q || p0) <= beta."""
    length_normalize: bool = False
    """Mean instead of sum of a candidate's log-ratios over its steps."""
    aggregate: Aggregate = "sequence_mean"
    """How the KL of tokens is averaged in the loss."""

    def __post_init__(self):
        super().__post_init__()
        if (self.dual or self.project_target) and not self.beta > 0:
            why = 'trust_region="lagrangian"' if self.dual else "project_target=True"
            raise ValueError(f"beta must be > 0 with {why}, got {self.beta}")
        for name in ("alpha", "hinge") if self.dual else ():
            require_idle(self, name, 'with trust_region="lagrangian", whose multiplier weighs the policy\'s KL')
        if not self.dual and self.hinge == "candidates":
            require_idle(self, "aggregate", 'without a KL of tokens in the loss (hinge="tokens", or a multiplier)')

    @property
    def dual(self):
        """With a multiplier."""
        return self.trust_region == "lagrangian"

    def check_group(self, size):
        """Raises ValueError for a group so large that its candidates start at the floor of `core.hard_pair_target`."""
        super().check_group(size)
        if size >= (most := round(1 / FLOOR)):
            raise ValueError(f"candidates={size} must be below {most} with hard: a candidate's 1/K is all floor there")

    def delta(self, adaptive: Adaptive):
        """delta_t of this batch."""
        return core.delta_schedule(self.delta_0, self.delta_gamma)(adaptive.batches)

    def signal(self, verdict, key, adaptive):
        """The pairs and the target, which all updates on a batch share."""
        pairs = self.pairs(verdict, key)
        known = verdict.mask if verdict.scores is None else verdict.scores
        if known is None:
            raise ValueError("scores or mask: hard needs one of them, to know how many candidates a group has")
        zeros = jnp.zeros(known.shape[:2])
        p0 = jnp.exp(core.candidate_log_probs(zeros, zeros)[0])  # as the loss has it
        radius = self.beta if self.project_target else None
        return Labels(pairs, core.hard_pair_target(p0, pairs, self.delta(adaptive), max_kl=radius))

    def objective(self, likelihoods, signal, adaptive):
        """KL to the target, and the trust region as the term `kl` (of the policy) or `candidate_kl`."""
        terms = core.hard_pair_grpo_loss.objective(
            likelihoods.logp,
            likelihoods.old_logp,
            signal.pairs,
            self.delta(adaptive),
            mask=likelihoods.mask,
            kl=likelihoods.kl_old(signal.counted) if self.dual or self.hinge == "tokens" else None,
            alpha=self.alpha,
            beta=self.beta,
            fit=self.fit,
            trust_region=self.trust_region,
            multiplier=adaptive.multiplier,
            target=signal.target,
            length_normalize=self.length_normalize,
            aggregate=self.aggregate,
        )
        return {"surrogate": terms.pop("fit")} | terms

    def renewed(self, adaptive, kl=None):
        """The next delta, and the multiplier's dual step, which holds this `kl` at beta: see `Method.renewed` for whose
        direction it has. The loss weighs KL(pi_theta || pi_old)."""
        after = super().renewed(adaptive)
        if kl is None or not self.dual:
            return after
        return after._replace(multiplier=core.update_multiplier(adaptive.multiplier, kl, self.beta))

    def report(self, adaptive):
        """`delta`."""
        return {"delta": jnp.asarray(self.delta(adaptive))}
