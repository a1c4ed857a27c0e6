"""The settings each method was tuned to, with the same effort; docs/results/halfcheetah.md tells how."""

from __future__ import annotations

from pairgrpo_jax.control.config import ControlConfig

# What differs from `ControlConfig`'s defaults, which are those of Hard-Pair-GRPO with a critic.
_VALUE = {
    "ppo": {"learning_rate": 2.5e-3, "gamma": 0.98, "groups": 64, "candidates": 8},
    "grpo": {"gamma": 0.98, "groups": 64, "candidates": 8, "fork": False},
    "rank": {"gamma": 0.98, "groups": 64, "candidates": 8, "fork": False},
    "soft": {"gamma": 0.98, "groups": 64, "candidates": 8, "fork": False, "scheme": "all", "beta": 0.01},
    "hard": {},
}
_CRITIC_FREE = {"groups": 128, "candidates": 8, "horizon": 25, "gamma": 0.98, "delta_0": 0.12}


def tuned(algo: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; unknown names are left for the config's own check."""
    changes = _VALUE.get(algo, {}) if advantage == "value" else _CRITIC_FREE
    return ControlConfig(algo=algo, advantage=advantage).replace(**changes)  # type: ignore[arg-type]
