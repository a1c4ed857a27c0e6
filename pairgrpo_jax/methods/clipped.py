"""The clipped surrogate (arXiv 1707.06347), which several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.surrogate import Aggregate, Level
from pairgrpo_jax.methods.method import Advantages, Likelihoods, Method


@dataclass(frozen=True)
class Clipped(Method):
    """A method whose policy loss is the clipped surrogate."""

    clip: Annotated[float, AtLeast(0)] = 0.2
    """PPO clip epsilon of the ratio."""
    clip_high: Annotated[float | None, AtLeast(0)] = None
    """Epsilon above 1, if it differs (DAPO's clip-higher)."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """Epsilon below and above 1."""
        return self.clip, self.clip if self.clip_high is None else self.clip_high

    def surrogate(self, likelihoods: Likelihoods, signal: Advantages, **options: Any) -> core.Objective:
        """The clipped surrogate's terms on given advantages."""
        terms = core.grpo_loss.objective(
            likelihoods.logp,
            likelihoods.old_logp,
            signal.advantages,
            mask=likelihoods.mask,
            clip=self.clip_range,
            candidate_weight=signal.candidate_weight,
            **options,
        )
        return {"surrogate": terms.pop("policy")} | terms


@dataclass(frozen=True)
class StepRules(Clipped):
    """How the steps of a candidate enter the surrogate."""

    level: Level = "token"
    """Ratio per token (or control step) or per sequence (GSPO)."""
    aggregate: Aggregate = "sequence_mean"
    """How steps are averaged: in a candidate first (GRPO), over all (DAPO), or over a constant (Dr. GRPO)."""

    def objective(self, likelihoods, signal, adaptive):
        """`-min(rho A, clip(rho) A)`, aggregated."""
        return self.surrogate(likelihoods, signal, level=self.level, aggregate=self.aggregate)
