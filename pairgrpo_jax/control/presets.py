"""The settings each method was tuned to; docs/results/halfcheetah.md tells how."""

from __future__ import annotations

from pairgrpo_jax.control.config import Collection, ControlConfig, ControlOptimizer
from pairgrpo_jax.methods import ONLINE, HardPair, SoftPair, method_class

# Large batches: what a long run without a critic needs is better gradients, not more of them.
_LARGE = {"groups": 640, "candidates": 8, "horizon": 25, "fork": True, "gamma": 0.97}
# Hard's KL is the policy's, which is exact here.
_HARD = HardPair(beta=0.03, alpha=2.0, delta_0=0.03, delta_gamma=1.0, hinge="tokens")
_WITH_CRITIC = {"hard": _HARD, "soft": SoftPair(margin=0.1)}
_CRITIC_FREE = {"hard": _HARD.replace(beta=0.01, alpha=0.5, delta_0=0.12)}


def tuned(method: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; ValueError for unknown names.

    With a critic one setting came out best for all five methods: they differ in their objective, and Soft in dropping
    near ties: gaps up to 0.1 of advantages, which a critic gives of rewards times max(1 - gamma, 1 / horizon).
    """
    plain = method_class(method, ONLINE)()
    if advantage == "value":
        return ControlConfig(_WITH_CRITIC.get(method, plain))
    collection = Collection(advantage, **_LARGE)  # type: ignore[arg-type]
    return ControlConfig(_CRITIC_FREE.get(method, plain), collection, ControlOptimizer(learning_rate=1e-3))
