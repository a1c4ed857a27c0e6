"""Checks of arguments, each with one error that names the argument; what is traced passes."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def require_rank(name: str, x: jax.Array, ranks: set[int], shape: str) -> None:
    """Raises ValueError that names the argument and the shape it should have."""
    _require_array(name, x)
    _require(functools.partial(chex.assert_rank, x, ranks), f"{name} must be {shape}, got shape {jnp.shape(x)}")


def require_same_shape(**arrays: jax.Array | None) -> None:
    """Raises ValueError unless all arrays that are given (not None) have one shape; the message names them."""
    given = {name: x for name, x in arrays.items() if x is not None}
    for name, x in given.items():
        _require_array(name, x)
    told = ", ".join(f"{name} {jnp.shape(x)}" for name, x in given.items())
    _require(functools.partial(chex.assert_equal_shape, list(given.values())), f"{told} must have the same shape")


def require_no_list(**arrays: object) -> None:
    """Raises ValueError that names a list or tuple, which `jax.numpy` refuses too; numbers and None pass."""
    for name, x in arrays.items():
        if isinstance(x, (list, tuple)):
            _require_array(name, x)


def require_scalar(**values: jax.typing.ArrayLike | None) -> None:
    """Raises ValueError that names an argument which has axes, or is no number; None passes."""
    for name, value in values.items():
        if callable(value) or isinstance(value, (str, bytes)):
            hint = f"; of a schedule pass {name}=schedule(t)" if callable(value) else ""
            raise ValueError(f"{name} must be a scalar, got {type(value).__name__}{hint}")
        if value is not None and np.ndim(value):
            raise ValueError(f"{name} must be a scalar, got shape {np.shape(value)}")


def require_broadcast(**arrays: jax.Array) -> None:
    """Raises ValueError that names the arrays unless their shapes broadcast; a list is none."""
    require_no_list(**arrays)
    try:
        np.broadcast_shapes(*map(jnp.shape, arrays.values()))
    except ValueError:
        told = ", ".join(f"{name} {jnp.shape(x)}" for name, x in arrays.items())
        raise ValueError(f"{told} must broadcast to one shape") from None


def _require(check: Callable[..., None], message: str) -> None:
    """Raises ValueError with the message alone where a check of chex fails."""
    try:
        check(exception_type=ValueError)
    except ValueError:
        raise ValueError(message) from None


def _require_array(name: str, x: object) -> None:
    if not hasattr(x, "shape"):
        raise ValueError(f"{name} must be an array, got {type(x).__name__}")


def did_you_mean(name: str, names: Iterable[str], otherwise: str, form: str = "{}") -> str:
    """`did you mean X?` of the nearest name, X in a form such as "--{}"; `otherwise` where none is near."""
    near = difflib.get_close_matches(name, [*names], n=1)
    return f"did you mean {form.format(near[0])}?" if near else otherwise


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(choices)}")


def concrete(x: jax.typing.ArrayLike) -> np.ndarray | None:
    """`x` as a numpy array, or None where it is traced or lies partly on other processes."""
    known = not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
    return np.asarray(x) if known else None


def require_values(rule: str, holds: Callable[[Any], Any], **values: jax.typing.ArrayLike | None) -> None:
    """Raises ValueError that names an argument with a concrete value for which `holds` is false; None passes."""
    for name, value in values.items():
        found = None if value is None else concrete(value)
        if found is not None and not np.all(fine := np.atleast_1d(holds(found))):
            raise ValueError(f"{name} must be {rule}, got {np.atleast_1d(found)[~fine][0]}")


require_positive = functools.partial(require_values, "> 0", lambda x: x > 0)
require_nonnegative = functools.partial(require_values, ">= 0", lambda x: x >= 0)
require_share = functools.partial(require_values, "in [0, 1]", lambda x: (x >= 0) & (x <= 1))
require_finite = functools.partial(require_values, "finite", np.isfinite)
