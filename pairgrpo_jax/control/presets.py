"""The settings each method was tuned to, with the same effort; docs/results/halfcheetah.md tells how."""

from __future__ import annotations

from pairgrpo_jax.control.config import ControlConfig

_UNFORKED = {"learning_rate": 2.5e-3, "gamma": 0.98, "groups": 64, "candidates": 8, "fork": False}
_SEGMENTS = {"learning_rate": 1e-3, "gamma": 0.97, "groups": 128, "candidates": 8, "horizon": 25, "delta_0": 0.12}
# What differs from `ControlConfig`'s defaults, which are those of Hard-Pair-GRPO with a critic.
_VALUE = {"ppo": _UNFORKED, "grpo": _UNFORKED, "rank": _UNFORKED, "soft": _UNFORKED | {"scheme": "all"}, "hard": {}}
_CRITIC_FREE = {"soft": _SEGMENTS | {"learning_rate": 1.5e-3, "scheme": "all"}}


def tuned(algo: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; unknown names are left for the config's own check."""
    changes = _VALUE.get(algo, {}) if advantage == "value" else _CRITIC_FREE.get(algo, _SEGMENTS)
    return ControlConfig(algo=algo, advantage=advantage).replace(**changes)  # type: ignore[arg-type]
