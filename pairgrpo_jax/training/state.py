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
          params: pytree of parameters.
          optimizer: the optax transformation that updates will use.
          key: typed PRNG key, `jax.random.key(seed)`.
          **rest: any of `normalizer`, `env_state`, `extra`, `multiplier`.
        """
        # One array per counter: a donated state must not hold the same buffer twice.
        counters = {name: jnp.zeros((), jnp.int32) for name in ("step", "delta_step", "skipped", "skipped_in_row")}
        rest.setdefault("multiplier", jnp.ones((), jnp.float32))
        return cls(params=params, opt_state=optimizer.init(params), key=key, **counters, **rest)


def is_alive(state: Any) -> bool:
    """Whether all arrays of a pytree still have their memory; traced ones have."""
    arrays = (x for x in jax.tree.leaves(state) if isinstance(x, jax.Array) and not isinstance(x, Tracer))
    return not any(x.is_deleted() for x in arrays)


def require_alive(state: Any) -> None:
    """Raises ValueError if an update took the state's memory; it says how to keep it."""
    if not is_alive(state):
        raise ValueError(
            "state: its memory was donated to an update that reused it. Go on from the state that the update returned, "
            "or keep both: make_update_step(..., donate=False)"
        )
