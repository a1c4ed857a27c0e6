"""Keys and values where they live, with the two products and the mask that every form of attention is made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KV(NamedTuple):
    """Keys and values with the position each stands at; -1 marks an empty slot or padding.

    `k` and `v` are `[B, H, S, D]` (stacked over layers, `[L, B, H, S, D]`); `positions` is
    `[B, S]`. A prompt shared by the K completions of a group has B/K rows.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns q k^T, `[B, Hq, T, S]`, float32 or better; rows of q that share a row of keys go in one product."""
    rows, kv_heads, slots, d = k.shape
    b, heads, t, _ = q.shape
    grouped = q.reshape(rows, b // rows, kv_heads, heads // kv_heads * t, d).swapaxes(1, 2)
    flat = grouped.reshape(rows, kv_heads, -1, d)
    out = jnp.einsum("bhnd,bhsd->bhns", flat, k, preferred_element_type=jnp.promote_types(flat.dtype, jnp.float32))
    out = out.reshape(rows, kv_heads, b // rows, -1, slots).swapaxes(1, 2)
    return out.reshape(b, heads, t, slots)


def weighted(probs: jax.Array, v: jax.Array) -> jax.Array:
    """Returns probs v, `[B, Hq, T, D]`, float32 or better: the mirror of `scores`."""
    rows, kv_heads, slots, d = v.shape
    b, heads, t, _ = probs.shape
    grouped = probs.reshape(rows, b // rows, kv_heads, heads // kv_heads * t, slots).swapaxes(1, 2)
    flat = grouped.reshape(rows, kv_heads, -1, slots)
    out = jnp.einsum("bhns,bhsd->bhnd", flat, v, preferred_element_type=jnp.promote_types(flat.dtype, jnp.float32))
    out = out.reshape(rows, kv_heads, b // rows, -1, d).swapaxes(1, 2)
    return out.reshape(b, heads, t, d)


def capped(raw: jax.Array, softcap: float) -> jax.Array:
    """Returns `softcap * tanh(raw / softcap)`; 0: `raw`."""
    return softcap * jnp.tanh(raw / softcap) if softcap else raw


def visible(query: jax.Array, key: jax.Array, window: jax.Array | int) -> jax.Array:
    """Returns which keys a query sees: real, not later, and inside the window (0 is no limit).

    Args:
      query: positions `[B, T]`.
      key: positions `[B', S]` with B' dividing B.
      window: positions seen, the query's own included.

    Returns:
      Mask `[B, T, S]`.
    """
    key = jnp.repeat(key, query.shape[0] // key.shape[0], axis=0)[:, None, :]
    query = query[:, :, None]
    near = (window == 0) | (query - key < window)
    return (key >= 0) & (key <= query) & near
