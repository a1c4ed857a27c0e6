"""The settings each method was tuned to, with the same effort; docs/results/halfcheetah.md tells how."""

from __future__ import annotations

from pairgrpo_jax.control.config import ControlConfig

_UNFORKED = {"groups": 64, "candidates": 8, "fork": False}
# Without these two guards a PPO run ended in a single update of KL 123.
_GUARDED = _UNFORKED | {"max_grad_norm": 1.0, "target_kl": 0.1}
_SEGMENTS = {"learning_rate": 1e-3, "gamma": 0.97, "groups": 128, "candidates": 8, "horizon": 25, "delta_0": 0.12}
# What differs from `ControlConfig`'s defaults, which are those of Hard-Pair-GRPO with a critic.
_SOFT = {"scheme": "all", "beta": 0.01}
_VALUE = {"ppo": _GUARDED, "grpo": _GUARDED, "rank": _GUARDED, "soft": _UNFORKED | _SOFT, "hard": {}}
_CRITIC_FREE = {"soft": _SEGMENTS | _SOFT | {"learning_rate": 1.5e-3}}


def tuned(algo: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; unknown names are left for the config's own check."""
    changes = _VALUE.get(algo, {}) if advantage == "value" else _CRITIC_FREE.get(algo, _SEGMENTS)
    return ControlConfig(algo=algo, advantage=advantage).replace(**changes)  # type: ignore[arg-type]
