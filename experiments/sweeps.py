"""What each method is tuned over: as many trials for one as for another."""

from __future__ import annotations

import itertools
from typing import Any

RATES = (1.25e-3, 2.5e-3, 5e-3)
"""Adam's step size at the start; every method tries each."""
LEVERS = {
    "ppo": ("clip", (0.1, 0.2, 0.3)),
    "grpo": ("clip", (0.1, 0.2, 0.3)),
    "rank": ("clip", (0.1, 0.2, 0.3)),
    "soft": ("margin", (0.03, 0.1, 0.2)),
    "hard": ("delta_0", (0.015, 0.03, 0.06)),
}
"""The lever of its own that each method has, and its values: as many for each."""


def trials(method: str) -> list[dict[str, Any]]:
    """The changes to a method's settings that its sweep tries; ValueError for a method without one."""
    if method not in LEVERS:
        raise ValueError(f"methods: {method} has no sweep; those that have one: {', '.join(LEVERS)}")
    lever, values = LEVERS[method]
    return [{"learning_rate": rate, lever: value} for rate, value in itertools.product(RATES, values)]


def label(trial: dict[str, Any]) -> str:
    """`learning_rate=0.005,clip=0.2`."""
    return ",".join(f"{name}={value:g}" for name, value in trial.items())
