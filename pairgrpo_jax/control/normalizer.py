"""Running mean and variance of observations, kept in the train state."""

from __future__ import annotations

import chex
import flax.struct
import jax.numpy as jnp


@flax.struct.dataclass
class Normalizer:
    """Statistics of all observations seen so far.

    Attributes:
      count: scalar.
      mean: `[D]`.
      variance: `[D]`.
    """

    count: chex.Array
    mean: chex.Array
    variance: chex.Array

    @classmethod
    def create(cls, size: int) -> Normalizer:
        """Mean 0, variance 1, and next to no weight."""
        return cls(jnp.full((), 1e-4), jnp.zeros(size), jnp.ones(size))

    def normalize(self, obs: chex.Array, limit: float = 10.0) -> chex.Array:
        """`[..., D]` -> standardised and clipped to +-limit."""
        return jnp.clip((obs - self.mean) / jnp.sqrt(self.variance + 1e-8), -limit, limit)

    def update(self, obs: chex.Array) -> Normalizer:
        """Merges a batch `[..., D]` (Chan et al., parallel variance)."""
        axes = tuple(range(obs.ndim - 1))
        mean, variance = jnp.mean(obs, axes), jnp.var(obs, axes)
        size = obs.size / obs.shape[-1]
        count = self.count + size
        shift = mean - self.mean
        spread = self.variance * self.count + variance * size + shift**2 * (self.count * size / count)
        return Normalizer(count, self.mean + shift * (size / count), spread / count)
