"""The one state of a training run: an immutable pytree that holds everything which must survive a crash."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer


class TrainState(flax.struct.PyTreeNode):
    """All that an update reads and writes; checkpointing it checkpoints the run.

    Attributes:
      params: pytree of model parameters.
      opt_state: the optimizer's state.
      key: typed PRNG key, split by whoever draws from it and stored back.
      step: int32 scalar, updates attempted, skipped ones included.
      delta_step: int32 scalar, the t of `delta_t`: how many times pi_old has been renewed.
      multiplier: float32 scalar, the Lagrange multiplier of the trust region.
      skipped: int32 scalar, updates skipped because the loss, a gradient or a parameter after
        the step was not finite.
      skipped_in_row: int32 scalar, how many of them since the last good update.
      normalizer: pytree, statistics that normalise observations.
      env_state: pytree of environment states.
      extra: pytree for anything else, such as a data cursor or a rollout buffer.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    delta_step: jax.Array
    multiplier: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    normalizer: Any = None
    env_state: Any = None
    extra: Any = None

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation, key: jax.Array, **rest: Any) -> TrainState:
        """A state at step 0.

        Args:
          params: pytree of parameters, all floating. They are not copied: an update that donates the state takes
            their memory; of copies, `jax.tree.map(jnp.copy, params)`, a second state can be made.
          optimizer: the optax transformation that updates will use.
          key: typed PRNG key, `jax.random.key(seed)`.
          **rest: any of `normalizer`, `env_state`, `extra`, `multiplier`.

        Raises:
          ValueError: for a parameter that has no gradient, what is no optimizer, or no typed key.
        """
        _require_floating(params)
        if not hasattr(optimizer, "init"):
            raise ValueError(f"optimizer must be an optax transformation, got {type(optimizer).__name__}")
        if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
            raise ValueError(f"key must be a typed PRNG key, jax.random.key(seed), got {type(key).__name__}")
        opt_state = _apart(optimizer.init(params), params)
        counters = {name: jnp.zeros((), jnp.int32) for name in ("step", "delta_step", "skipped", "skipped_in_row")}
        rest.setdefault("multiplier", jnp.ones((), jnp.float32))
        return cls(params=params, opt_state=opt_state, key=key, **counters, **rest)


def _apart(tree: Any, other: Any) -> Any:
    """`tree` with copies of the arrays that `other` or an earlier place holds too: a buffer is donated once.

    Prodigy and Schedule-Free keep the parameters themselves.
    """
    held = {id(x) for x in jax.tree.leaves(other)}

    def own(x: Any) -> Any:
        x = jnp.copy(x) if id(x) in held else x
        held.add(id(x))
        return x

    return jax.tree.map(own, tree)


def _require_floating(params: Any) -> None:
    """Raises ValueError that names a parameter which no gradient would move."""
    for path, x in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(found := jnp.result_type(x), jnp.inexact):
            name = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name}: {found} has no gradient; make it float, or keep it in `extra`")


def is_alive(state: Any) -> bool:
    """Whether all arrays of a pytree still have their memory; traced ones have."""
    arrays = (x for x in jax.tree.leaves(state) if isinstance(x, jax.Array) and not isinstance(x, Tracer))
    return not any(x.is_deleted() for x in arrays)


def require_alive(state: Any) -> None:
    """Raises ValueError if an update took the state's memory; it says how to keep it."""
    if not is_alive(state):
        raise ValueError(
            "state: its memory, or that of the parameters it was made of, was donated to an update that reused it. Go "
            "on from the state that the update returned, or keep both: make_update_step(..., donate=False)"
        )
