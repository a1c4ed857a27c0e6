"""GRPO (arXiv 2402.03300), with the options of Dr. GRPO, DAPO, GSPO and RLOO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pairgrpo_jax import core
from pairgrpo_jax.methods.clipped import StepRules
from pairgrpo_jax.methods.method import Advantages


@dataclass(frozen=True)
class Grpo(StepRules):
    """GRPO (arXiv 2402.03300, eq. 3): the clipped surrogate on rewards standardised within their group."""

    name: ClassVar[str] = "grpo"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What rewards are compared to: their group's mean, or the mean of the others (RLOO, arXiv 2402.14740)."""
    scale: Literal["group", "batch", "none"] = "group"
    """What they are divided by: the std of the group, of the batch, or nothing (Dr. GRPO)."""

    def signal(self, verdict, key, adaptive):
        """Advantages, 0 in groups that are not alive; the std of a batch counts no others."""
        scores, alive = verdict.scores, verdict.alive
        advantages = core.group_advantages(scores, baseline=self.baseline, scale=self.scale, alive=alive)
        return Advantages(advantages, alive)
