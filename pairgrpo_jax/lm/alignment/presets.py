"""Where each method starts; docs/results/alignment.md tells what was tried.

Online the learning rate was tuned on Hard and on Soft; GRPO, rank-GRPO and PPO, which share its surrogate, have Soft's.
"""

from __future__ import annotations

from pairgrpo_jax.lm.alignment.config import AlignConfig, AlignOptimizer, Critic, Texts
from pairgrpo_jax.methods import HardPair, method_class

_HARD = HardPair(beta=0.3, delta_0=0.12)
_PAIRS = Texts(prompts=16)
_LAYERS = ("q", "k", "v", "o", "gate", "up", "down")
_SUMS = Texts(prompts=8, completion_tokens=12)


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
    """`AlignConfig` of an online method for sums of one digit, whose reward is 0 or 1.

    Answers below zero are rarely right before most others are. So flat groups are drawn anew, but for a critic, which
    learns from every group, and replies are drawn at a temperature at which a minus lasts longer.
    """
    config = tuned(method).replace(texts=_SUMS, candidates=16, epochs=1, warmup=2, lora_targets=_LAYERS)
    config = config.replace(learning_rate=4e-4, anneal=True, temperature=1.3)
    if isinstance(config.method, HardPair):
        config = config.replace(delta_0=_HARD.delta_0 / 2)  # of twice as many candidates
    return config if config.critic is not None else config.replace(resample=2)
