"""The Brax simulators against Brax's own environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs

from pairgrpo_jax.control import fork, make_env


@pytest.fixture(scope="module")
def env():
    return make_env("brax:spring")


def test_steps_like_brax(env):
    theirs = envs.get_environment("halfcheetah", backend="spring")
    keys = jax.random.split(jax.random.key(0), 2)
    ours, expected = env.reset(jax.random.key(0), 2), jax.vmap(theirs.reset)(keys)
    step, their_step = jax.jit(env.step), jax.jit(jax.vmap(theirs.step))
    for t in range(5):
        action = jax.random.uniform(jax.random.key(t), (2, 6), minval=-1)
        ours, expected = step(ours, action), their_step(expected, action)
    np.testing.assert_allclose(ours.obs, expected.obs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.reward, expected.reward, rtol=1e-4, atol=1e-5)
    assert ours.obs.shape == (2, env.observation_size)
    assert env.qpos(ours).shape == (2, 9)


def test_forks_and_counts_age(env):
    state = fork(env.reset(jax.random.key(0), 2), 3)
    state = jax.jit(env.step)(state, jnp.zeros((6, 6)))
    np.testing.assert_array_equal(state.obs[0], state.obs[2])
    assert (state.age == 1).all() and not state.done.any()
    assert jax.jit(env.step)(state.replace(age=state.age + 998), jnp.zeros((6, 6))).done.all()
