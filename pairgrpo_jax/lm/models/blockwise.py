"""Attention over blocks of keys: memory linear in the length of a text, on any platform.

The softmax is summed up block by block (https://arxiv.org/abs/1805.02867); the backward pass computes the
probabilities of a block anew from the logarithm of their sum (https://arxiv.org/abs/2205.14135).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.models.places import KV, capped, scores, visible, weighted

BLOCK = 256
_LOW = -0.7 * float(jnp.finfo(jnp.float32).max)


class Sums(NamedTuple):
    """What queries have seen: highest scores, totals of exponentials `[B, Hq, T]`, weighted values `[B, Hq, T, D]`."""

    highest: jax.Array
    total: jax.Array
    values: jax.Array


def forward(
    q: jax.Array, places: Sequence[KV], positions: jax.Array, scale: Any, window: Any, *, softcap: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the output `[B, Hq, T, D]` and the log of each softmax's sum `[B, Hq, T]`.

    A query that sees nothing gets 0 and passes no gradient on. Arguments as those of `attention.attend`.
    """
    wide = jnp.promote_types(q.dtype, jnp.float32)
    shape = q.shape[:-1]
    sums = Sums(jnp.full(shape, _LOW, wide), jnp.zeros(shape, wide), jnp.zeros(q.shape, wide))

    def see(sums: Sums, block: KV) -> tuple[Sums, None]:
        seen = visible(positions, block.positions, window)[:, None]
        raw = jnp.where(seen, capped(scores(q, block.k) * scale, softcap), _LOW)
        highest = jnp.maximum(sums.highest, raw.max(-1))
        fade = jnp.exp(sums.highest - highest)
        weights = jnp.where(seen, jnp.exp(raw - highest[..., None]), 0)
        values = sums.values * fade[..., None] + weighted(weights.astype(q.dtype), block.v)
        return Sums(highest, sums.total * fade + weights.sum(-1), values), None

    for kv in places:
        sums, _ = jax.lax.scan(see, sums, _blocks(kv))
    total = jnp.where(sums.total > 0, sums.total, 1)
    return (sums.values / total[..., None]).astype(q.dtype), sums.highest + jnp.log(total)


def backward(
    q: jax.Array, places: Sequence[KV], positions: jax.Array, scale: Any, window: Any, *, softcap: float, saved, grad
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]], jax.Array]:
    """Returns the gradients of `q`, of each place's keys and values, and of `scale`.

    Args:
      q: see `forward`, as the next five.
      places: where the keys are.
      positions: of the queries.
      scale: of the scores.
      window: of the mask.
      softcap: of the scores.
      saved: what `forward` returned.
      grad: of the output, `[B, Hq, T, D]`.
    """
    out, log_total = saved
    wide = jnp.promote_types(q.dtype, jnp.float32)
    mean = jnp.sum(out.astype(wide) * grad.astype(wide), axis=-1, keepdims=True)

    def pull(carry, block: KV):
        seen = visible(positions, block.positions, window)[:, None]
        raw, pull_raw = jax.vjp(lambda q, k, scale: capped(scores(q, k) * scale, softcap), q, block.k, scale)
        weights = jnp.where(seen, jnp.exp(raw - log_total[..., None]), 0)
        _, pull_values = jax.vjp(weighted, weights.astype(q.dtype), block.v)
        pulled, v = pull_values(grad.astype(wide))
        dq, k, dscale = pull_raw((weights * (pulled - mean)).astype(raw.dtype))
        return (carry[0] + dq, carry[1] + dscale), (k, v)

    carry = (jnp.zeros(q.shape, wide), jnp.zeros_like(scale))
    grads = []
    for kv in places:
        carry, blocks = jax.lax.scan(pull, carry, _blocks(kv))
        grads.append(tuple(_joined(x, kv.k.shape[-2]) for x in blocks))
    return carry[0].astype(q.dtype), grads, carry[1]


def _blocks(kv: KV) -> KV:
    """Splits the slots, filled up with empty ones, into blocks along a new leading axis."""
    slots = kv.k.shape[-2]
    size = min(BLOCK, slots)
    more = -slots % size

    def split(x: jax.Array, axis: int, fill: int) -> jax.Array:
        ends = [(0, more if i == axis else 0) for i in range(x.ndim)]
        x = jnp.pad(x, ends, constant_values=fill)
        return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :]), axis, 0)

    return KV(split(kv.k, 2, 0), split(kv.v, 2, 0), split(kv.positions, 1, -1))


def _joined(blocks: jax.Array, slots: int) -> jax.Array:
    """`[N, B, H, S', D]` back to `[B, H, S, D]`."""
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :slots]
