"""The MuJoCo simulator against Gymnasium itself."""

import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.control import fork, make_env
from pairgrpo_jax.control.env import select

STEPS, SEEDS = 1000, 20


@pytest.fixture(scope="module")
def env():
    return make_env("mujoco", threads=2)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["HalfCheetah-v4", "HalfCheetah-v5"])
def test_matches_gymnasium_step_by_step(env, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [gymnasium.make(version) for _ in range(SEEDS)]
        for seed, one in enumerate(theirs):
            one.reset(seed=seed)
    start = [np.array([getattr(one.unwrapped.data, name) for one in theirs]) for name in ("qpos", "qvel")]
    state = env.from_qpos_qvel(*start)
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, SEEDS, 6)).astype(np.float32)
    step = jax.jit(env.step)
    for action in actions:
        state = step(state, action)
        expected = [one.step(a.astype(np.float64)) for one, a in zip(theirs, action)]
        qpos, qvel = env.qpos_qvel(state)
        np.testing.assert_allclose(qpos, [one.unwrapped.data.qpos for one in theirs], rtol=0, atol=1e-10)
        np.testing.assert_allclose(qvel, [one.unwrapped.data.qvel for one in theirs], rtol=0, atol=1e-10)
        np.testing.assert_allclose(state.reward, [e[1] for e in expected], rtol=0, atol=1e-6)
        np.testing.assert_allclose(state.obs, [e[0] for e in expected], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(state.done, [e[3] for e in expected])  # Gymnasium's time limit, too
    assert state.done.all()


def test_reset_follows_gymnasiums_distribution(env):
    state = env.reset(jax.random.key(0), 4000)
    qpos, qvel = env.qpos_qvel(state)
    assert np.abs(qpos).max() <= 0.1
    np.testing.assert_allclose(qpos.std(0), 0.2 / np.sqrt(12), rtol=0.05)
    np.testing.assert_allclose(qvel.std(0), 0.1, rtol=0.05)
    np.testing.assert_allclose(state.obs, np.concatenate([qpos[:, 1:], qvel], axis=1), rtol=1e-6)


def test_forked_branches_replay_the_same_future(env):
    state = env.reset(jax.random.key(1), 3)
    actions = jax.random.uniform(jax.random.key(2), (10, 3, 6), minval=-1)
    for action in actions:
        state = env.step(state, action)
    branches = fork(state, 2)
    for action in actions:
        state, branches = env.step(state, action), env.step(branches, jnp.repeat(action, 2, axis=0))
    np.testing.assert_array_equal(np.asarray(branches.physics)[::2], np.asarray(state.physics))
    np.testing.assert_array_equal(np.asarray(branches.physics)[1::2], np.asarray(state.physics))


def test_a_row_does_not_depend_on_its_neighbours_or_threads(env):
    state = env.reset(jax.random.key(1), 5)
    action = jax.random.uniform(jax.random.key(2), (5, 6), minval=-1)
    together = env.step(state, action)
    alone = make_env("mujoco", threads=1).step(select(state, jnp.array([3])), action[3:4])
    np.testing.assert_array_equal(together.physics[3], alone.physics[0])


def test_vmap_over_seeds_equals_one_at_a_time(env):
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.vmap(lambda key: env.reset(key, 2))(keys)
    action = jnp.full((3, 2, 6), 0.5)
    after = jax.jit(jax.vmap(env.step))(states, action)
    single = env.step(env.reset(keys[1], 2), action[1])
    np.testing.assert_array_equal(after.physics[1], single.physics)


def test_positions_for_drawing_are_those_of_the_state(env):
    state = env.reset(jax.random.key(0), 3)
    np.testing.assert_allclose(env.qpos(state), env.qpos_qvel(state)[0], rtol=1e-6)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"env='walker'.*mujoco, brax:spring"):
        make_env("walker")
