"""The methods of the family, one file each; the same objects train HalfCheetah and language models."""

from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.methods.dpo import Dpo
from pairgrpo_jax.methods.grpo import Grpo
from pairgrpo_jax.methods.hard_pair import HardPair
from pairgrpo_jax.methods.ipo import Ipo
from pairgrpo_jax.methods.kto import Kto
from pairgrpo_jax.methods.method import Adaptive, Advantages, Labels, Likelihoods, Method, Verdict
from pairgrpo_jax.methods.orpo import Orpo
from pairgrpo_jax.methods.ppo import Ppo
from pairgrpo_jax.methods.rank_grpo import RankGrpo
from pairgrpo_jax.methods.simpo import SimPo
from pairgrpo_jax.methods.soft_pair import SoftPair

METHODS: tuple[type[Method], ...] = (Grpo, RankGrpo, Ppo, SoftPair, HardPair, Dpo, Ipo, Orpo, SimPo, Kto)
NAMES = tuple(method.name for method in METHODS)
ONLINE = tuple(method.name for method in METHODS if method.online)


def method_class(name: str, offered: tuple[str, ...] = NAMES) -> type[Method]:
    """The method of this name; ValueError that suggests the nearest of those offered for an unknown one."""
    if name in NAMES:
        return METHODS[NAMES.index(name)]
    hint = did_you_mean(name, offered, "")
    raise ValueError(f"method {name!r} is unknown{f'; {hint}' if hint else ''} ({', '.join(offered)})")


__all__ = [
    "METHODS",
    "NAMES",
    "ONLINE",
    "Adaptive",
    "Advantages",
    "Dpo",
    "Grpo",
    "HardPair",
    "Ipo",
    "Kto",
    "Labels",
    "Likelihoods",
    "Method",
    "Orpo",
    "Ppo",
    "RankGrpo",
    "SimPo",
    "SoftPair",
    "Verdict",
    "method_class",
]
