"""A frozen base as codes and scales: int8 (https://arxiv.org/abs/2208.07339) and nf4 (https://arxiv.org/abs/2305.14314).

q8_0 is a block type of GGUF, as in files that people have. Codes become numbers again where a product needs them, one
layer at a time. qwix has the same nf4 codes (`tests/lm/test_quantized.py`), but takes 25 times as long to look a number
up on a CPU, and longer to find a code.
"""

import functools
from typing import Any, Literal, get_args

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["none", "int8", "q8_0", "nf4"]
KINDS = get_args(Kind)
BLOCKS = {"q8_0": 32, "nf4": 64}  # inputs of one scale, as GGUF and the paper of nf4 have it
# Appendix E of the paper: equally likely values of a normal distribution, scaled to [-1, 1], with an exact zero.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


@flax.struct.dataclass
class Codes:
    """A matrix `[..., d, out]`: int8 numbers or, of 4 bits, indices of `NF4`, times their scales.

    Attributes:
      codes: int8 or uint4 `[..., d, out]`.
      scale: `[..., blocks of d, blocks of out]`; float32, in q8_0 float16 and in nf4 bfloat16.
    """

    codes: jax.Array
    scale: jax.Array

    @property
    def kind(self) -> str:
        """Out of `KINDS`."""
        if self.codes.dtype == jnp.uint4:
            return "nf4"
        return "q8_0" if self.scale.dtype == jnp.float16 else "int8"


def quantized(params: Any, kind: str) -> Any:
    """Returns the parameters with their matrices as `Codes`; norms, biases and learned positions stay as they are.

    Layers have int8 codes with a scale for each output, or nf4 codes with one for each output and 64 inputs (of
    another width: the divisor of it nearest to that). The embedding and the projection to the vocabulary are int8 in
    both, a scale a token. In q8_0 all have int8 codes with a scale for each output and 32 inputs: what GGUF's Q8_0
    holds, so that a file of that type, read in float32, loses nothing.

    Args:
      params: a parameter tree, of arrays or, under `jax.eval_shape`, of shapes.
      kind: out of `KINDS`; "none" returns the tree as it is.

    Raises:
      ValueError: if `kind` is unknown, or the parameters are codes of another kind.
    """
    check_kind(kind)
    if (held := kind_of(params)) not in ("none", kind):
        raise ValueError(f"quantize={kind!r}: the parameters are {held} codes already; use that, or load them anew")
    if kind in ("none", held):
        return params
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    return flax.traverse_util.unflatten_dict({path: encoded(path, x, kind) for path, x in flat.items()}, sep="/")


def check_kind(kind: str) -> None:
    """Raises ValueError for a kind that is not in `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"quantize={kind!r} must be one of {', '.join(KINDS)}")


def encoded(path: str, x: jax.Array, kind: str) -> Any:
    """One parameter of `quantized`, by its path `layers/attn/q/kernel`."""
    if kind == "none" or not (path == "embed" or path.endswith("/kernel")):
        return x
    axis = -1 if path == "embed" else -2
    if path.startswith("layers/") and kind == "nf4":
        return _nf4(x)
    return _q8_0(x, axis) if kind == "q8_0" else _int8(x, axis)


def kind_of(params: Any) -> str:
    """Out of `KINDS`: what the layers of a parameter tree are held as."""
    found = [x.kind for x in jax.tree.leaves(params.get("layers", {}), is_leaf=is_coded) if is_coded(x)]
    return found[0] if found else "none"


def require_numbers(params: Any) -> None:
    """Raises ValueError for parameters that are codes."""
    if (kind := kind_of(params)) != "none":
        raise ValueError(f"params: {kind} codes; pass dequantized(params)")


def is_coded(x: Any) -> bool:
    """Whether this is a matrix of codes."""
    return isinstance(x, Codes)


def dense(x: Any, dtype: Any) -> jax.Array:
    """Returns a matrix as numbers of `dtype`: an array, or codes times their scales, in float32."""
    if not is_coded(x):
        return x.astype(dtype)
    values = x.codes.astype(jnp.float32)
    if x.kind == "nf4":
        values = jnp.take(jnp.asarray(NF4), x.codes.astype(jnp.int32), mode="clip")
    *stack, b, o = x.scale.shape
    *_, d, out = values.shape
    scale = x.scale.astype(jnp.float32).reshape(*stack, b, 1, o, 1)
    return (values.reshape(*stack, b, d // b, o, out // o) * scale).reshape(values.shape).astype(dtype)


def rows(x: Any, index: jax.Array) -> Any:
    """`x[index]` of an array, or of codes with scales for each row."""
    return jax.tree.map(lambda part: part[index], x)


@functools.partial(jax.jit, static_argnames="dtype")
def dequantized(params: Any, dtype: Any = jnp.float32) -> Any:
    """Returns the parameters with all codes as numbers, for `lora.merge` and `save_pretrained`."""
    return jax.tree.map(lambda x: dense(x, dtype) if is_coded(x) else x, params, is_leaf=is_coded)


@functools.partial(jax.jit, static_argnames="axis")
def _int8(x: jax.Array, axis: int) -> Codes:
    """The largest of an axis is 127."""
    x = x.astype(jnp.float32)
    scale = _above_zero(jnp.abs(x).max(axis, keepdims=True) / 127)
    return Codes(jnp.round(x / scale).astype(jnp.int8), scale)


@functools.partial(jax.jit, static_argnames="axis")
def _q8_0(x: jax.Array, axis: int) -> Codes:
    """The largest of a block is 127."""
    codes = _int8(_in_blocks(x, "q8_0", axis), axis=axis)
    return Codes(codes.codes.reshape(x.shape), codes.scale.squeeze(axis).astype(jnp.float16))


@jax.jit
def _nf4(x: jax.Array) -> Codes:
    """The nearest level of each part of its block's largest."""
    blocks = _in_blocks(x, "nf4", axis=-2)
    scale = _above_zero(jnp.abs(blocks).max(-2, keepdims=True))
    parts = blocks / scale
    codes = sum((parts > middle).astype(jnp.int8) for middle in (NF4[1:] + NF4[:-1]) / 2)
    return Codes(codes.reshape(x.shape).astype(jnp.uint4), scale[..., 0, :].astype(jnp.bfloat16))


def _in_blocks(x: jax.Array, kind: str, axis: int) -> jax.Array:
    """`[..., blocks, size, out]`, or with `axis` -1 `[..., d, blocks, size]`, in float32."""
    width, at = x.shape[axis], x.ndim + axis
    size = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - BLOCKS[kind]))
    return x.astype(jnp.float32).reshape(*x.shape[:at], width // size, size, *x.shape[at + 1 :])


def _above_zero(scale: jax.Array) -> jax.Array:
    """The scale, or 1 where all numbers are 0."""
    return jnp.where(scale > 0, scale, 1)
