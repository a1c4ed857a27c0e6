"""Where each method starts; docs/results/alignment.md tells what was tried.

Online the learning rate was tuned on Hard and on Soft; GRPO, rank-GRPO and PPO, which share its surrogate, have Soft's.
"""

from __future__ import annotations

from pairgrpo_jax.lm.alignment.config import OFFLINE, AlignConfig

_ONLINE: dict[str, dict] = {
    "hard": {},
    "soft": {"beta": 0.01, "learning_rate": 1e-4},
    "grpo": {"learning_rate": 1e-4},
    "rank": {"learning_rate": 1e-4},
    "ppo": {"learning_rate": 1e-4},
}
_PAIRS = {"prompts": 16, "epochs": 1, "learning_rate": 5e-4}
_OFFLINE: dict[str, dict] = {
    "dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "orpo": {"beta": 0.1},
    "soft": {"beta": 0.01, "epochs": 2},
    "hard": {"beta": 0.05, "delta_0": 0.2, "epochs": 2},
}


def tuned(algo: str = "hard", offline: bool = False) -> AlignConfig:
    """`AlignConfig` for a method; unknown names are left for the config's own check."""
    offline = offline or algo in OFFLINE
    changes = _PAIRS | _OFFLINE.get(algo, {}) if offline else _ONLINE.get(algo, {})
    return AlignConfig(algo=algo, offline=offline).replace(**changes)  # type: ignore[arg-type]
