"""The settings each method was tuned to, with the same effort; see docs/results/halfcheetah.md."""

from __future__ import annotations

from pairgrpo_jax.control.config import ControlConfig


def tuned(algo: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; unknown names are left for the config's own check."""
    config = ControlConfig(algo=algo, advantage=advantage)  # type: ignore[arg-type]
    return config
