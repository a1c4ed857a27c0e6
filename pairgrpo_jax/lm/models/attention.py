"""Attention over keys that live in several places: the text itself, a cache, a shared prompt."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class KV(NamedTuple):
    """Keys and values with the position each stands at; -1 marks an empty slot or padding.

    `k` and `v` are `[B, H, S, D]` (stacked over layers, `[L, B, H, S, D]`); `positions` is
    `[B, S]`. A prompt shared by the K completions of a group has B/K rows.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array


def _scores(q: jax.Array, kv: KV) -> jax.Array:
    """Returns q k^T, `[B, Hq, T, S]`; rows of q that share a row of keys go in one product."""
    rows, kv_heads, slots, d = kv.k.shape
    b, heads, t, _ = q.shape
    grouped = q.reshape(rows, b // rows, kv_heads, heads // kv_heads * t, d).swapaxes(1, 2)
    flat = grouped.reshape(rows, kv_heads, -1, d)
    out = jnp.einsum("bhnd,bhsd->bhns", flat, kv.k, preferred_element_type=jnp.promote_types(flat.dtype, jnp.float32))
    out = out.reshape(rows, kv_heads, b // rows, -1, slots).swapaxes(1, 2)
    return out.reshape(b, heads, t, slots)


def _weighted(probs: jax.Array, kv: KV) -> jax.Array:
    """Returns probs v, `[B, Hq, T, D]`, float32 or better: the mirror of `_scores`."""
    rows, kv_heads, slots, d = kv.v.shape
    b, heads, t, _ = probs.shape
    grouped = probs.reshape(rows, b // rows, kv_heads, heads // kv_heads * t, slots).swapaxes(1, 2)
    flat = grouped.reshape(rows, kv_heads, -1, slots)
    out = jnp.einsum("bhns,bhsd->bhnd", flat, kv.v, preferred_element_type=jnp.promote_types(flat.dtype, jnp.float32))
    out = out.reshape(rows, kv_heads, b // rows, -1, d).swapaxes(1, 2)
    return out.reshape(b, heads, t, d)


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


def attend(
    q: jax.Array,
    places: Sequence[KV],
    positions: jax.Array,
    *,
    scale: jax.Array | float,
    window: jax.Array | int = 0,
    softcap: float = 0.0,
) -> jax.Array:
    """Softmax attention over the union of the keys of all places.

    Args:
      q: queries `[B, Hq, T, D]`; Hq is a multiple of the key heads.
      places: where the keys are; each with B' rows, B' dividing B.
      positions: of the queries, `[B, T]`.
      scale: multiplies the scores.
      window: see `visible`.
      softcap: if positive, scores become `softcap * tanh(scores / softcap)` (Gemma 2,
        https://arxiv.org/abs/2408.00118).

    Returns:
      `[B, Hq, T, D]`. Rows at a padding position hold finite numbers without meaning.
    """
    masks = [visible(positions, kv.positions, window) for kv in places]
    scores = jnp.concatenate([_scores(q, kv) for kv in places], axis=-1) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(jnp.concatenate(masks, axis=-1)[:, None], scores, _MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    ends = [sum(kv.k.shape[-2] for kv in places[: i + 1]) for i in range(len(places) - 1)]
    parts = jnp.split(probs, ends, axis=-1)
    return sum((_weighted(p, kv) for p, kv in zip(parts, places)), start=jnp.zeros((), q.dtype)).astype(q.dtype)


def default_scale(head_dim: int) -> float:
    """Returns 1 / sqrt(D)."""
    return 1.0 / math.sqrt(head_dim)
