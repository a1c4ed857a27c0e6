"""Rank-GRPO: GRPO on mid-ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.methods.clipped import StepRules
from pairgrpo_jax.methods.method import Advantages


@dataclass(frozen=True)
class RankGrpo(StepRules):
    """GRPO on centred mid-ranks in [-1, 1]: the control for what *binary* pairs change."""

    name: ClassVar[str] = "rank"

    def signal(self, verdict, key, adaptive):
        """Mid-ranks, 0 in groups that are not alive."""
        advantages = core.rank_advantages(verdict.scores)
        if verdict.alive is not None:
            advantages = jnp.where(verdict.alive[:, None] > 0, advantages, 0)
        return Advantages(advantages, verdict.alive)
