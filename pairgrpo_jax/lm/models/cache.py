"""The key-value cache: what a text has already seen, its own and its group's prompt."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.places import KV


class Cache(NamedTuple):
    """Keys and values of every layer.

    Attributes:
      own: `[L, B, H, S, D]` with S slots allocated; unwritten slots have position -1.
      next: the slot the next token goes to, a scalar.
      shared: a prompt's keys and values, one row for K rows of `own`, or None.
    """

    own: KV
    next: jax.Array
    shared: KV | None = None

    def places(self) -> list[KV]:
        """Returns the keys and values to attend to."""
        return [self.own] if self.shared is None else [self.shared, self.own]


def empty(config: ModelConfig, rows: int, slots: int, dtype, shared: KV | None = None) -> Cache:
    """Returns a cache of `slots` free slots for each of `rows` texts."""
    shape = (config.num_layers, rows, config.num_kv_heads, slots, config.head_dim)
    free = jnp.full((rows, slots), -1, jnp.int32)
    own = KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), free)
    return Cache(own, jnp.zeros((), jnp.int32), shared)


def append(cache: Cache, new: KV) -> Cache:
    """Writes `T` new positions (`[L, B, H, T, D]`) at the next slots.

    Raises:
      ValueError: if they do not fit; under `jit` only the size of the cache can be checked.
    """
    slots, t = cache.own.k.shape[-2], new.k.shape[-2]
    used = 0 if isinstance(cache.next, Tracer) else int(cache.next)
    if used + t > slots:
        raise ValueError(f"cache: {used} of {slots} slots are used, {t} more do not fit")
    at = cache.next
    k = jax.lax.dynamic_update_slice_in_dim(cache.own.k, new.k.astype(cache.own.k.dtype), at, 3)
    v = jax.lax.dynamic_update_slice_in_dim(cache.own.v, new.v.astype(cache.own.v.dtype), at, 3)
    positions = jax.lax.dynamic_update_slice_in_dim(cache.own.positions, new.positions, at, 1)
    return cache._replace(own=KV(k, v, positions), next=at + t)


def next_positions(cache: Cache) -> jax.Array:
    """Returns the position after the last one each row has seen, `[B]`."""
    rows = cache.own.positions.shape[0]
    last = [kv.positions.max(-1, initial=-1) for kv in cache.places()]
    return jnp.stack([jnp.repeat(x, rows // x.shape[0]) for x in last]).max(0) + 1
