"""Attention over keys that live in several places: the text itself, a cache, a shared prompt."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.models import blockwise, kernels
from pairgrpo_jax.lm.models.places import KV, capped, scores, visible, weighted

LONG = 512 * 512  # scores of a head and text, from which on they are not held
_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
_by_platform: Any = jax.lax.platform_dependent


def attend(
    q: jax.Array,
    places: Sequence[KV],
    positions: jax.Array,
    *,
    scale: jax.Array | float,
    window: jax.Array | int = 0,
    windows: Sequence[int] | None = None,
    softcap: float = 0.0,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.Array:
    """Softmax attention over the union of the keys of all places.

    Short texts hold all scores. Of long ones the scores are never held: a TPU has its splash attention, an NVIDIA
    card cuDNN's, and whatever these do not take, as every other platform, goes over blocks of keys.

    Args:
      q: queries `[B, Hq, T, D]`; Hq is a multiple of the key heads.
      places: where the keys are; each with B' rows, B' dividing B. The text's own come last.
      positions: of the queries, `[B, T]`; real ones rise by one along a row, after those of all other places.
      scale: multiplies the scores.
      window: see `places.visible`.
      windows: all that a traced `window` may be; the platforms' own attention takes texts that none of them cuts.
      softcap: if positive, scores become `softcap * tanh(scores / softcap)` (Gemma 2,
        https://arxiv.org/abs/2408.00118).
      mesh: of the devices that rows, by its first axis, and heads, by its axis `tensor`, are split over.

    Returns:
      `[B, Hq, T, D]`. Rows at a padding position hold finite numbers without meaning.
    """
    slots = sum(kv.k.shape[-2] for kv in places)
    if q.shape[-2] * slots < LONG or q.shape[-2] == 1:
        return plain(q, places, positions, scale=scale, window=window, softcap=softcap)
    if windows is None:
        windows = (window,) if isinstance(window, int) else (1,)
    cut = any(0 < w < slots for w in windows)
    return _long(_How(softcap, cut, mesh), q, list(places), positions, jnp.asarray(scale), jnp.asarray(window))


def plain(
    q: jax.Array,
    places: Sequence[KV],
    positions: jax.Array,
    *,
    scale: jax.Array | float,
    window: jax.Array | int = 0,
    softcap: float = 0.0,
) -> jax.Array:
    """`attend` with all scores in memory at once."""
    masks = [visible(positions, kv.positions, window) for kv in places]
    raw = jnp.concatenate([scores(q, kv.k) for kv in places], axis=-1) * scale
    raw = jnp.where(jnp.concatenate(masks, axis=-1)[:, None], capped(raw, softcap), _MASKED)
    probs = jax.nn.softmax(raw, axis=-1).astype(q.dtype)
    ends = [sum(kv.k.shape[-2] for kv in places[: i + 1]) for i in range(len(places) - 1)]
    parts = jnp.split(probs, ends, axis=-1)
    return sum((weighted(p, kv.v) for p, kv in zip(parts, places)), start=jnp.zeros((), q.dtype)).astype(q.dtype)


class _How(NamedTuple):
    """What is known before any array: the soft cap, whether a window cuts a text, and the mesh."""

    softcap: float
    cut: bool
    mesh: jax.sharding.Mesh | None

    def kernels(self, q: jax.Array, places: Sequence[KV]) -> dict[str, Any]:
        """`(q, places, scale) -> out` of each platform whose own attention takes this."""
        found: dict[str, Any] = {}
        if not self.cut and kernels.takes_splash(q, places, self.mesh):
            found["tpu"] = functools.partial(kernels.splash, softcap=self.softcap, mesh=self.mesh)
        if not self.cut and kernels.takes_cudnn(q, places, self.softcap):
            found["cuda"] = kernels.cudnn
        return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _long(how: _How, q, places, positions, scale, window) -> jax.Array:
    return _long_forward(how, q, places, positions, scale, window)[0]


def _long_forward(how: _How, *args):
    """The output, and what the backward pass needs of it. Kernels need nothing: they run again, as under remat."""

    def blocks(args):
        return blockwise.forward(*args, softcap=how.softcap)

    def flash(kernel, args):
        q, places, _, scale, _ = args
        out = jax.vjp(kernel, q, places, scale)[0]  # the same call as the backward pass has, for the compiler to merge
        return out, jnp.zeros(q.shape[:-1], jnp.promote_types(q.dtype, jnp.float32))

    own = {name: functools.partial(flash, kernel) for name, kernel in how.kernels(*args[:2]).items()}
    saved = _by_platform(args, default=blocks, **own)
    return saved[0], (args, saved)


def _long_backward(how: _How, residuals, grad):
    args, saved = residuals

    def blocks(args, saved, grad):
        return blockwise.backward(*args, softcap=how.softcap, saved=saved, grad=grad)

    def flash(kernel, args, saved, grad):
        q, places, _, scale, _ = args

        def run(q, pairs, scale):
            return kernel(q, [KV(k, v, kv.positions) for (k, v), kv in zip(pairs, places)], scale)

        return jax.vjp(run, q, [(kv.k, kv.v) for kv in places], scale)[1](grad)

    own = {name: functools.partial(flash, kernel) for name, kernel in how.kernels(*args[:2]).items()}
    q, pairs, scale = _by_platform(args, saved, grad, default=blocks, **own)
    nothing: Any = None
    return q, [KV(k, v, nothing) for k, v in pairs], None, scale, None


_long.defvjp(_long_forward, _long_backward)


def default_scale(head_dim: int) -> float:
    """Returns 1 / sqrt(D)."""
    return 1.0 / math.sqrt(head_dim)
