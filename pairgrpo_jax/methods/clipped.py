"""The clipped surrogate (arXiv 1707.06347), which several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast
from pairgrpo_jax.core.surrogate import Aggregate, Level
from pairgrpo_jax.methods.method import Advantages, Likelihoods, Method


@dataclass(frozen=True)
class Clipped(Method):
    """A method whose policy loss is the clipped surrogate."""

    clip: Annotated[float, AtLeast(0)] = 0.2
    """PPO clip epsilon of the ratio."""
    clip_high: Annotated[float | None, AtLeast(0)] = None
    """Epsilon above 1, if it differs (DAPO's clip-higher)."""
    dual_clip: Annotated[float | None, Above(1)] = None
    """Bound of the ratio where the advantage is negative (dual clip, arXiv 1912.09729, with 3); None: no bound."""

    @property
    def clip_range(self) -> tuple[float, float]:
        """Epsilon below and above 1."""
        return self.clip, self.clip if self.clip_high is None else self.clip_high

    @property
    def rules(self) -> dict[str, Any]:
        """Its settings as options of core's losses."""
        return {"clip": self.clip_range, "dual_clip": self.dual_clip}

    def surrogate(self, likelihoods: Likelihoods, signal: Advantages, **options: Any) -> core.Objective:
        """The surrogate's terms on given advantages; `options` of `core.grpo_loss` go before `rules`."""
        terms = core.grpo_loss.objective(
            likelihoods.logp,
            likelihoods.old_logp,
            signal.advantages,
            mask=likelihoods.mask,
            candidate_weight=signal.candidate_weight,
            **self.rules | options,
        )
        return {"surrogate": terms.pop("policy")} | terms


@dataclass(frozen=True)
class StepRules(Clipped):
    """How the steps of a candidate enter the surrogate."""

    level: Level = "token"
    """Ratio per token (or control step) or per sequence (GSPO)."""
    aggregate: Aggregate = "sequence_mean"
    """How steps are averaged: in a candidate first (GRPO), over all (DAPO), or over a constant (Dr. GRPO)."""

    @property
    def rules(self) -> dict[str, Any]:
        """With `level` and `aggregate`."""
        return super().rules | {"level": self.level, "aggregate": self.aggregate}

    def objective(self, likelihoods, signal, adaptive):
        """`-min(rho A, clip(rho) A)`, aggregated."""
        return self.surrogate(likelihoods, signal)
