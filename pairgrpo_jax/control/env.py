"""The environment interface: pure batched `reset` and `step` on states that can be forked by indexing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


class EnvState(flax.struct.PyTreeNode):
    """A batch of n environment states.

    Attributes:
      physics: pytree of `[n, ...]`, all that the simulator needs to go on.
      obs: float32 `[n, observation_size]`.
      reward: float32 `[n]`, of the step that led here; 0 after a reset.
      done: float32 `[n]`, 1 once the time limit is reached. These environments never terminate earlier.
      age: int32 `[n]`, control steps since the reset.
    """

    physics: Any
    obs: jax.Array
    reward: jax.Array
    done: jax.Array
    age: jax.Array


class Env(ABC):
    """A simulator. `reset` and `step` are pure and work under jit and vmap."""

    name: str
    observation_size: int
    action_size: int
    dt: float  # seconds per control step
    episode_length: int  # control steps

    @abstractmethod
    def reset(self, key: jax.Array, n: int) -> EnvState:
        """`n` fresh states, age 0."""

    @abstractmethod
    def step(self, state: EnvState, action: jax.Array) -> EnvState:
        """One control step of `dt` seconds; `action [n, action_size]` in [-1, 1]."""

    @abstractmethod
    def qpos(self, state: EnvState) -> jax.Array:
        """Generalised positions `[n, 9]` in MuJoCo's order, for drawing."""


def fork(state: EnvState, copies: int) -> EnvState:
    """`[n]` states -> `[n * copies]`, each repeated `copies` times in a row."""
    return jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), state)


def select(state: EnvState, index: jax.Array) -> EnvState:
    """The states at `index [m]`."""
    return jax.tree.map(lambda x: x[index], state)


def where(condition: jax.Array, first: EnvState, second: EnvState) -> EnvState:
    """`first` where `condition [n]` holds, else `second`."""

    def choose(a, b):
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, first, second)
