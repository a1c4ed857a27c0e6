"""The clipped surrogate (arXiv 1707.06347), which several methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above, AtLeast, require_idle
from pairgrpo_jax.core.surrogate import Aggregate, Level, PolicyLoss
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
    policy_loss: PolicyLoss = "clip"
    """The clipped surrogate, or `-min(rho, 1 + clip_high) A log p` with a constant weight (CISPO, arXiv 2506.13585)."""

    def __post_init__(self):
        super().__post_init__()
        if self.policy_loss == "cispo":
            require_idle(self, "dual_clip", 'with policy_loss="cispo", whose weight is capped for every advantage')
            if self.clip_high is not None:
                require_idle(self, "clip", 'with policy_loss="cispo", whose weight is capped by clip_high alone')

    @property
    def rules(self) -> dict[str, Any]:
        """With those of the steps."""
        steps = {"level": self.level, "aggregate": self.aggregate, "policy_loss": self.policy_loss}
        return super().rules | steps | ({"clip": self.clip_range[1]} if self.policy_loss == "cispo" else {})

    def objective(self, likelihoods, signal, adaptive):
        """`-min(rho A, clip(rho) A)` or CISPO's loss, aggregated."""
        return self.surrogate(likelihoods, signal)
