"""Products with matrices of parameters, whose operands may be rounded to half precision and whose sums never are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.models.quantized import dense, is_coded


def project(x: jax.Array, kernel: Any, dtype: Any, out: Any = None, axis: int = 0) -> jax.Array:
    """`x @ kernel`, of operands rounded to `dtype`, accumulated in float32 or better.

    In half precision the products of the backward pass are like that too. As XLA's CPU compiler takes float32 for
    products that come out in half precision or mix the two, only these are fast where a processor multiplies bfloat16.

    Args:
      x: `[N, d]`.
      kernel: `[d, f]`, or `[f, d]` with `axis` 1; an array, or frozen `Codes`.
      dtype: of the operands.
      out: of the result; by default that of `x`.
      axis: of `kernel` that has d entries.

    Returns:
      `[N, f]`.
    """
    out = x.dtype if out is None else out
    kernel = dense(kernel, dtype) if is_coded(kernel) else kernel
    if jnp.dtype(dtype).itemsize > 2:
        return _dot(x.astype(dtype), kernel.astype(dtype), 1, axis, out)
    return _half(x, kernel, dtype, axis).astype(out)


def _dot(x: jax.Array, y: jax.Array, i: int, j: int, out: Any = jnp.float32) -> jax.Array:
    """The product of two matrices over axis `i` of the one and `j` of the other."""
    return jax.lax.dot_general(x, y, (((i,), (j,)), ((), ())), preferred_element_type=out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _half(x: jax.Array, kernel: jax.Array, dtype: Any, axis: int) -> jax.Array:
    return _dot(x.astype(dtype), kernel.astype(dtype), 1, axis)


def _forward(x: jax.Array, kernel: jax.Array, dtype: Any, axis: int) -> tuple:
    return _half(x, kernel, dtype, axis), (x, kernel)


def _backward(dtype: Any, axis: int, operands: tuple, grad: jax.Array) -> tuple:
    x, kernel = (value.astype(dtype) for value in operands)
    grad = grad.astype(dtype)
    slope = _dot(grad, x, 0, 0) if axis else _dot(x, grad, 0, 0)
    return _dot(grad, kernel, 1, 1 - axis).astype(operands[0].dtype), slope.astype(operands[1].dtype)


_half.defvjp(_forward, _backward)
