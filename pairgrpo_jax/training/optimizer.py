"""How a batch is fitted: passes, updates and Adam's step size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from pairgrpo_jax.core.bounds import OR_NONE, Above, AtLeast, Settings
from pairgrpo_jax.core.terms import as_float


@dataclass(frozen=True)
class Optimizer(Settings):
    """Updates on each batch, with Adam and a clipped global gradient norm."""

    epochs: Annotated[int, AtLeast(1)] = 1
    """Passes over each batch."""
    minibatches: Annotated[int, AtLeast(1)] = 1
    """Updates per pass."""
    learning_rate: Annotated[float, AtLeast(0)] = 1e-3
    """Adam's step size at the start."""
    anneal: bool = False
    """Decay the learning rate linearly to 0 over the run."""
    max_grad_norm: Annotated[float, Above(0), OR_NONE] = 1.0
    """Global gradient-norm clip; inf: none."""

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps on each batch."""
        return self.epochs * self.minibatches


def global_norm(grads: Any) -> jax.Array:
    """The norm of all gradients, summed in float32 at least: sums in half precision stand still, or overflow."""
    return optax.tree.norm(jax.tree.map(as_float, grads))


def clipped_adam(max_norm: float, rate: optax.ScalarOrSchedule, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam after `optax.clip_by_global_norm`, with `global_norm` in place of its own norm."""

    def clip(updates: Any, params: Any = None) -> Any:
        norm = global_norm(updates)
        return jax.tree.map(
            lambda x: jnp.where(norm < max_norm, x, (as_float(x) / norm * max_norm).astype(x.dtype)), updates
        )

    return optax.chain(optax.stateless(clip), optax.adam(rate, eps=eps))


def annealed_to(planned: jax.Array, opt_state: Any) -> Any:
    """The optimizer's state with its learning rate where it is after `planned` updates (int32), made or not.

    optax counts the updates made: after some that were stopped or skipped, the rate would be above the plan's. Adam's
    own count stays. Without a schedule nothing changes.
    """
    return jax.tree.map(
        lambda x: x._replace(count=planned) if isinstance(x, optax.ScaleByScheduleState) else x,
        opt_state,
        is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
    )
