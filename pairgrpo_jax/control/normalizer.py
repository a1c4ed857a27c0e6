"""Running mean and variance of observations, kept in the train state."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

LARGEST = 1e6  # a simulator that diverges passes through such numbers, and one of them would be the variance for good


class Normalizer(flax.struct.PyTreeNode):
    """Statistics of all observations seen so far.

    Attributes:
      count: scalar.
      mean: `[D]`.
      variance: `[D]`.
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array

    @classmethod
    def create(cls, size: int) -> Normalizer:
        """Mean 0, variance 1, and next to no weight."""
        return cls(jnp.full((), 1e-4), jnp.zeros(size), jnp.ones(size))

    def normalize(self, obs: jax.Array, limit: float = 10.0) -> jax.Array:
        """`[..., D]` -> standardised and clipped to +-limit; what is not finite becomes 0, the mean."""
        obs = jnp.where(jnp.isfinite(obs), obs, self.mean)
        return jnp.clip((obs - self.mean) / jnp.sqrt(self.variance + 1e-8), -limit, limit)

    def update(self, obs: jax.Array) -> Normalizer:
        """Merges a batch `[..., D]` (Chan et al., parallel variance) without its rows that are not sound."""
        rows = sound_rows(obs)
        return jax.lax.cond(jnp.all(rows), self._merge, lambda x: self._merge(x, rows[..., None]), obs)

    def _merge(self, obs: jax.Array, rows: jax.Array | None = None) -> Normalizer:
        axes = tuple(range(obs.ndim - 1))
        if rows is None:
            size, mean, variance = obs.size / obs.shape[-1], jnp.mean(obs, axes), jnp.var(obs, axes)
        else:
            size = jnp.sum(rows)
            mean = jnp.sum(jnp.where(rows, obs, 0), axes) / jnp.maximum(size, 1)
            variance = jnp.sum(jnp.where(rows, obs - mean, 0) ** 2, axes) / jnp.maximum(size, 1)
        count = self.count + size
        shift = mean - self.mean
        spread = self.variance * self.count + variance * size + shift**2 * (self.count * size / count)
        return Normalizer(count, self.mean + shift * (size / count), spread / count)


def sound_rows(x: jax.Array) -> jax.Array:
    """Which rows of `[..., D]` are below `LARGEST` throughout, `[...]`; nan is not."""
    return jnp.all(jnp.abs(x) < LARGEST, axis=-1)
