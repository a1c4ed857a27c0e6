"""The settings each method was tuned to, with the same effort; docs/results/halfcheetah.md tells how."""

from __future__ import annotations

from pairgrpo_jax.control.config import ControlConfig


def tuned(algo: str = "hard", advantage: str = "value") -> ControlConfig:
    """`ControlConfig` for a method and an advantage source; unknown names are left for the command line to refuse."""
    config = ControlConfig(algo=algo, advantage=advantage)  # type: ignore[arg-type]
    if advantage == "value":
        return config
    return config.replace(groups=128, horizon=25, gamma=0.97)
