"""The flash attention of TPUs (splash) and of NVIDIA cards (cuDNN), on keys that live in several places.

Both order keys by slot: real positions of a row must rise by one from slot to slot, and what is not the text itself
must come before it. Scales are multiplied into the queries beforehand.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.lm.models import layout
from pairgrpo_jax.lm.models.places import KV

_LANES = 128


def is_own_text(q: jax.Array, place: KV) -> bool:
    """Whether a place holds a key for each query, as the text that is being run does."""
    return (place.k.shape[0], place.k.shape[-2]) == (q.shape[0], q.shape[-2])


def takes_cudnn(q: jax.Array, places: Sequence[KV], softcap: float) -> bool:
    """Whether cuDNN is here and computes this: half precision, a text that sees itself alone, no soft cap."""
    if len(places) > 1 or not is_own_text(q, places[0]) or softcap or q.dtype not in (jnp.bfloat16, jnp.float16):
        return False
    if q.shape[-1] % 8 or q.shape[-1] > 128:
        return False
    try:
        jax.eval_shape(cudnn, q, places, 1.0)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def cudnn(q: jax.Array, places: Sequence[KV], scale: jax.Array | float, implementation: Any = "cudnn") -> jax.Array:
    """Attention of a text to itself, `[B, Hq, T, D]`; padding on either side.

    Args:
      q: `[B, Hq, T, D]`.
      places: one, the text's own.
      scale: of the scores.
      implementation: of `jax.nn.dot_product_attention`; "xla" computes the same with plain products.
    """
    (own,) = places
    real = own.positions >= 0
    first, lengths = jnp.argmax(real, axis=-1), jnp.maximum(real.sum(-1, dtype=jnp.int32), 1)
    slots = jnp.arange(q.shape[-2])
    rolled = (slots + first[:, None]) % len(slots)  # real ones first

    def by_slot(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x.swapaxes(1, 2), rolled[:, :, None, None], axis=1)

    out = jax.nn.dot_product_attention(
        by_slot((q * scale).astype(q.dtype)),
        by_slot(own.k),
        by_slot(own.v),
        scale=1.0,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    back = (slots - first[:, None]) % len(slots)
    out = jnp.take_along_axis(out, back[:, :, None, None], axis=1).swapaxes(1, 2)
    return jnp.where(real[:, None, :, None], out, 0)


def takes_splash(q: jax.Array, places: Sequence[KV], mesh: jax.sharding.Mesh | None) -> bool:
    """Whether a TPU's splash attention computes this: the text comes last, and its rows divide over the mesh."""
    if not is_own_text(q, places[-1]) or (q.shape[-1] > _LANES and q.shape[-1] % _LANES):
        return False
    if mesh is None:
        return jax.device_count() == 1  # the compiler splits no kernel by itself
    return all(kv.k.shape[0] % layout.parts(mesh) == 0 for kv in places)


def splash(
    q: jax.Array,
    places: Sequence[KV],
    scale: jax.Array | float,
    softcap: float = 0.0,
    mesh: jax.sharding.Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention to all that came before and, causally, to the text itself, `[B, Hq, T, D]`.

    Args:
      q: `[B, Hq, T, D]`.
      places: the text's own comes last; the others may have B' rows, B' dividing B.
      scale: of the scores.
      softcap: of the scores.
      mesh: whose first axis splits rows and whose axis `tensor`, where there is one, splits heads.
      interpret: run the kernel without a TPU, slowly.
    """
    run = functools.partial(_splash, softcap=softcap, interpret=interpret)
    q = (q * scale).astype(q.dtype)
    if mesh is None:
        return run(q, list(places))
    heads = "tensor" if places[0].k.shape[1] % mesh.shape.get("tensor", places[0].k.shape[1] + 1) == 0 else None
    by_head = jax.sharding.PartitionSpec(mesh.axis_names[0], heads)
    by_row = jax.sharding.PartitionSpec(mesh.axis_names[0])
    where = [KV(by_head, by_head, by_row)] * len(places)  # pyright: ignore[reportArgumentType]
    split = jax.shard_map(run, mesh=mesh, in_specs=(by_head, where), out_specs=by_head, check_vma=False)
    return split(q, list(places))


def _splash(q: jax.Array, places: list[KV], softcap: float, interpret: bool) -> jax.Array:
    """The texts that share a row become one long row of queries, whose mask tells them apart."""
    b, heads, t, d = q.shape
    rows = min(kv.k.shape[0] for kv in places)
    block = next(n for n in (512, 256, _LANES) if -(-t // n) * n * 4 <= 5 * t or n == _LANES)

    def one_row(x: jax.Array, fill: int = 0) -> jax.Array:
        """`[n rows, H, S, ...]` to `[rows, H, n S', ...]`, S filled up to whole blocks."""
        ends = [(0, 0), (0, 0), (0, -x.shape[2] % block)] + [(0, 0)] * (x.ndim - 3)
        x = jnp.pad(x, ends, constant_values=fill)
        x = x.reshape(rows, -1, *x.shape[1:]).swapaxes(1, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    k, v = (jnp.concatenate([one_row(x) for x in xs], axis=2) for xs in ((p.k for p in places), (p.v for p in places)))
    real = jnp.concatenate([one_row(kv.positions[:, None], -1)[:, 0] for kv in places], axis=-1) >= 0
    folded = one_row(q)
    sizes = [(len(kv.k) // rows, -(-kv.k.shape[2] // block) * block) for kv in places]
    kernel = _kernel(tuple(sizes), heads, block, softcap or None, interpret)
    ids = _library().SegmentIds(jnp.ones(folded.shape[::2][:2], jnp.int32), real.astype(jnp.int32))
    out = jax.vmap(kernel)(folded, k, v, ids)
    out = out.reshape(rows, heads, b // rows, -1, d).swapaxes(1, 2).reshape(b, heads, -1, d)
    return out[:, :, :t].astype(q.dtype)


@functools.lru_cache(maxsize=64)
def _kernel(sizes: tuple[tuple[int, int], ...], heads: int, block: int, softcap: float | None, interpret: bool):
    """Splash attention over places of `sizes[i]`, (texts, slots), in one row; queries are those of the last."""
    library = _library()
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    blocks = library.BlockSizes(**dict.fromkeys((*names, "block_q_dq", "block_kv_dq"), block))
    options = {"block_sizes": blocks, "attn_logits_soft_cap": softcap, "interpret": interpret}
    mask = library.splash_attention_mask.MultiHeadMask([_mask(library, sizes)] * heads)
    with jax.ensure_compile_time_eval():
        return library.make_splash_mha(mask, head_shards=1, q_seq_shards=1, **options)


def _mask(library, sizes: Sequence[tuple[int, int]]):
    """A text sees the part of each place that it shares with others or has alone, and of the last no later slot."""
    texts, steps = sizes[-1]
    spans = [(np.arange(n * s) // s * (texts // n), texts // n) for n, s in sizes]
    first = np.concatenate([start for start, _ in spans])
    end = np.concatenate([start + span for start, span in spans])
    slot = np.concatenate([np.full(len(first) - texts * steps, -1), np.tile(np.arange(steps), texts)])

    class Sees(library.splash_attention_mask.Mask):
        shape = (texts * steps, len(slot))

        def __getitem__(self, index) -> np.ndarray:
            text, step = np.divmod(np.arange(self.shape[0])[index[0]][:, None], steps)
            keys = index[1]
            return (text >= first[keys]) & (text < end[keys]) & (step >= slot[keys])

    return Sees()


def _library():
    return importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention")
