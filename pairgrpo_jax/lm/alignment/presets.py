"""Where each method starts; docs/results/alignment.md tells what was tried.

Online the learning rate was tuned on Hard and on Soft; GRPO, rank-GRPO and PPO, which share its surrogate, have Soft's.
"""

from __future__ import annotations

from pairgrpo_jax.lm.alignment.config import AlignConfig, AlignOptimizer, Critic, Texts
from pairgrpo_jax.methods import HardPair, method_class

_HARD = HardPair(beta=0.3, delta_0=0.12)
_PAIRS = Texts(prompts=16)
_SUMS = Texts(prompts=8, completion_tokens=16)


def tuned(method: str = "hard", offline: bool = False) -> AlignConfig:
    """`AlignConfig` of a method; `offline` of one that can learn from both; ValueError for an unknown one."""
    made = method_class(method)()
    hard = isinstance(made, HardPair)
    if offline or not made.online:
        made = HardPair(beta=0.05, delta_0=0.2) if hard else made
        how = AlignOptimizer(epochs=2 if made.ratio else 1, learning_rate=5e-4)
        return AlignConfig(made, None, _PAIRS, how)
    critic = Critic() if made.critic else None
    return AlignConfig(
        _HARD if hard else made, critic=critic, optimizer=AlignOptimizer(learning_rate=1e-3 if hard else 1e-4)
    )


def tuned_for_sums(method: str) -> AlignConfig:
    """`AlignConfig` of an online method for sums of one digit, whose reward is 0 or 1."""
    return tuned(method).replace(texts=_SUMS, epochs=1, warmup=2, learning_rate=1e-3)
