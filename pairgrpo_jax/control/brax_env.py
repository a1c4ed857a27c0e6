"""Brax's HalfCheetah inside XLA. Not HalfCheetah-v4: other contacts and, in some backends, other gears."""

from __future__ import annotations

import contextlib
import functools
import warnings
from unittest import mock

import jax
import jax.numpy as jnp

from pairgrpo_jax.control.env import Env, EnvState

with warnings.catch_warnings():
    # Brax says on import that its environments moved to MuJoCo Playground; this one is wanted as it is.
    warnings.filterwarnings("ignore", module="brax")
    from brax import envs
    from mujoco import mjx


@contextlib.contextmanager
def _own_device():
    """mjx puts a model on the first of all devices; of several processes, only one could read it there."""
    own = jax.local_devices()[0]
    if own == jax.devices()[0]:
        yield
        return
    with mock.patch.object(mjx, "put_model", functools.partial(mjx.put_model, device=own)):
        yield


class BraxHalfCheetah(Env):
    """`brax.envs.halfcheetah` without wrappers, vectorised by vmap."""

    observation_size = 17
    action_size = 6
    episode_length = 1000

    def __init__(self, backend: str = "spring"):
        self.name = f"brax:{backend}"
        with _own_device():
            self._env = envs.get_environment("halfcheetah", backend=backend)
        self.dt = float(self._env.dt)
        self.sys = self._env.sys

    def reset(self, key, n):
        """`n` fresh states from `n` keys."""
        state = jax.vmap(self._env.reset)(jax.random.split(key, n))
        zeros = jnp.zeros(n, jnp.float32)
        return EnvState(state, jnp.asarray(state.obs), zeros, zeros, jnp.zeros(n, jnp.int32))

    def step(self, state, action):
        """One Brax control step: forward velocity minus 0.1 |action|^2."""
        physics = jax.vmap(self._env.step)(state.physics, action)
        age = state.age + 1
        done = (age >= self.episode_length).astype(jnp.float32)
        return EnvState(physics, jnp.asarray(physics.obs), physics.reward, done, age)

    def qpos(self, state):
        """Brax's `q`; the joints are those of MuJoCo's model."""
        return state.physics.pipeline_state.q
