"""What a check of the theory returns: a claim, a verdict, the number that was measured and what it had to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HOLDS, HOLDS_IF, FAILS = "holds", "holds if", "fails"


@dataclasses.dataclass(frozen=True)
class Statement:
    """One claim about the Pair-GRPO family, checked on an exact problem.

    Attributes:
      item: number of the claim in the list of statements ("1" to "11"), or the name of a guarantee.
      claim: the claim, in one sentence.
      verdict: "holds", "holds if" or "fails". A verdict is ours; `confirmed` says that the numbers agree with it.
      measured: the number that was measured.
      predicted: what the formula says it is.
      bound: how far the two may lie apart.
      condition: what "holds if" needs, or the counterexample of "fails".
      checks: further facts, each by name; the statement needs them all.
      numbers: further numbers worth printing, by name.
      curves: arrays to plot, by name.
    """

    item: str
    claim: str
    verdict: str
    measured: float
    predicted: float
    bound: float
    condition: str = ""
    checks: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """True if the measured number is within `bound` of the predicted one and every check passed."""
        return bool(abs(self.measured - self.predicted) <= self.bound) and all(map(bool, self.checks.values()))

    @property
    def failures(self) -> list[str]:
        """The names of what did not come out as stated."""
        failed = [name for name, passed in self.checks.items() if not passed]
        if not abs(self.measured - self.predicted) <= self.bound:
            failed.insert(0, f"measured {self.measured:.3e} is not within {self.bound:.1e} of {self.predicted:.3e}")
        return failed


def require_float64() -> None:
    """Raises RuntimeError unless 64-bit arithmetic is on: a tolerance of 1e-12 means nothing without."""
    if not jax.config.read("jax_enable_x64"):
        raise RuntimeError(
            "statements are checked in float64: wrap the call in `with jax.enable_x64(True):` "
            'or call jax.config.update("jax_enable_x64", True) first'
        )


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the angle between vectors along the last axis, `[..., D]`, 0 if either is zero."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.where(norms == 0, 0, jnp.sum(a * b, axis=-1) / jnp.where(norms == 0, 1, norms))


def angle(a: jax.Array, b: jax.Array) -> jax.Array:
    """Angle in radians between vectors `[..., D]`, accurate down to rounding (an arc cosine loses half the digits)."""
    a, b = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return 2 * jnp.arctan2(jnp.linalg.norm(a - b, axis=-1), jnp.linalg.norm(a + b, axis=-1))


def slope(x: Any, y: Any) -> float:
    """Log-log slope of y over x, `[N]` each: the order of y in x."""
    return float(np.polyfit(np.log(np.asarray(x)), np.log(np.asarray(y)), 1)[0])
