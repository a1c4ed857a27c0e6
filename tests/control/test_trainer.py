"""The training loop: what goes into a batch, and that every method learns."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.control import make_env, make_trainer, tuned
from pairgrpo_jax.control.env import Env, EnvState
from pairgrpo_jax.control.normalizer import Normalizer
from pairgrpo_jax.control.rollout import next_states, score, start_states, to_groups

SMALL = tuned("hard").replace(groups=4, candidates=4, horizon=8, epochs=2, minibatches=4, hidden=(8,), delta_0=0.1)
SMALL = SMALL.replace(fork=True, scheme="matched", max_grad_norm=10.0, target_kl=0.0)
C = SMALL.collection


def with_method(name, **changes):
    """The small run of a method: what Hard is set to where it has such a setting."""
    method = tuned(name).method
    shared = {"scheme": "matched", "margin": 0.0}
    return SMALL.replace(method=method.replace(**{k: v for k, v in shared.items() if method.has(k)})).replace(**changes)


ALGORITHMS = ("ppo", "grpo", "soft", "hard", "rank")


@pytest.fixture(scope="module")
def env():
    return make_env("mujoco")


def compiled(config, env, iterations=4):
    trainer = make_trainer(config, env, iterations)
    return trainer, jax.jit(trainer.iterate, static_argnums=1)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_first_minibatch_is_on_policy(env, algo):
    trainer, iterate = compiled(with_method(algo, epochs=1, minibatches=1), env)
    state = trainer.init(jax.random.key(0))
    for _ in range(2):  # the second time with a normaliser that has seen data
        state, metrics = iterate(state, 1)
        assert abs(float(metrics["kl_old"][0])) < 1e-6
        if "approx_kl" in metrics:
            assert abs(float(metrics["approx_kl"][0])) < 1e-6


@pytest.mark.parametrize("advantage", ["segment", "reward_to_go", "value"])
@pytest.mark.parametrize("algo", ALGORITHMS[1:])
def test_every_method_runs_in_every_mode(env, algo, advantage):
    trainer, iterate = compiled(with_method(algo, advantage=advantage), env)
    state, metrics = iterate(trainer.init(jax.random.key(0)), 2)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    assert ("critic" in state.params) == (advantage == "value")
    assert metrics["realised_kl"][0] > 0 and "surrogate" in metrics


def test_the_conditions_of_the_theory_are_logged(env):
    """The pair methods log those of their own pairs, on the scores that made them; the others those of rewards."""
    _, hard = (f := compiled(SMALL, env))[1](f[0].init(jax.random.key(0)), 2)
    assert (np.abs(hard["scheme_cosine_min"]) <= hard["scheme_cosine"]).all() and (hard["scheme_cosine"] < 1).all()
    assert (hard["transfers_fit"] == 1).all() and (hard["tied_groups"] == 0).all() and (hard["smallest_gap"] > 0).all()
    _, capped = (f := compiled(SMALL.replace(delta_0=0.3, delta_gamma=0.5), env))[1](f[0].init(jax.random.key(0)), 2)
    np.testing.assert_array_equal(capped["transfers_fit"], [0, 1])  # p0 = 1/4 cannot give 0.3, but 0.15
    _, soft = (f := compiled(with_method("soft", scheme="margin_weighted"), env))[1](f[0].init(jax.random.key(0)), 2)
    np.testing.assert_allclose(soft["scheme_cosine_min"], 1, atol=1e-5)
    assert (soft["rank_correlation"] < 0.999).all() and "transfers_fit" not in soft
    _, grpo = (f := compiled(with_method("grpo"), env))[1](f[0].init(jax.random.key(0)), 2)
    assert (grpo["rank_correlation"] < 0.999).all() and "scheme_cosine" not in grpo


def test_compiles_once(env, compiles_nothing):
    trainer, iterate = compiled(SMALL, env)
    state, _ = iterate(jax.jit(trainer.init)(jax.random.key(0)), 1)
    with compiles_nothing():
        for _ in range(2):
            state, _ = iterate(state, 1)


def test_seeds_side_by_side_equal_one_by_one(env):
    trainer = make_trainer(SMALL, env, 4)
    keys = jax.random.split(jax.random.key(0), 3)
    _, together = jax.jit(lambda keys: jax.vmap(lambda k: trainer.iterate(trainer.init(k), 2))(keys))(keys)
    _, alone = jax.jit(lambda key: trainer.iterate(trainer.init(key), 2))(keys[1])
    for name in ("return", "loss", "realised_kl"):
        np.testing.assert_allclose(together[name][1], alone[name], rtol=1e-3, atol=1e-5)


def test_trunk_ages_are_staggered_and_end_at_the_limit(env):
    state = start_states(env, C, jax.random.key(0))
    assert len(set(np.asarray(state.age).tolist())) == C.groups
    branches = env.reset(jax.random.key(1), 16)
    old = branches.replace(age=jnp.full(16, 1000), done=jnp.repeat(jnp.array([0.0, 1.0]), 8))
    after = next_states(env, C, old, jax.random.key(2))
    np.testing.assert_array_equal(after.age, [1000, 1000, 0, 0])


def test_the_next_trunk_is_a_uniformly_random_branch(env):
    branches = env.reset(jax.random.key(1), 16)
    picks = [next_states(env, C, branches, jax.random.key(i)).obs[1] for i in range(200)]
    counts = [sum(bool((pick == branches.obs[4 + j]).all()) for pick in picks) for j in range(4)]
    assert sum(counts) == 200 and min(counts) > 25


def test_scores_of_the_three_modes():
    reward = jnp.array([[1.0], [2.0], [4.0]])
    values = jnp.array([[10.0], [20.0], [30.0], [40.0]])
    config = C.replace(horizon=3, gamma=0.5)
    assert score(config.replace(advantage="segment"), reward, None).tolist() == [1 + 0.5 * 2 + 0.25 * 4]
    assert score(config.replace(advantage="reward_to_go"), reward, None)[:, 0].tolist() == [3, 4, 4]
    errors = np.array([1 / 2 + 10 - 10, 2 / 2 + 15 - 20, 4 / 2 + 20 - 30])  # rewards times 1 - gamma
    expected = [errors[0] + errors[1] / 8 + errors[2] / 64, errors[1] + errors[2] / 8, errors[2]]
    np.testing.assert_allclose(score(config.replace(gae_lambda=0.25), reward, values)[:, 0], expected)


def test_groups_hold_the_branches_of_one_trunk():
    n = C.groups * C.candidates
    x = jnp.arange(C.horizon)[:, None] * 100 + jnp.arange(n)
    slices = to_groups(C, x)
    assert slices.shape == (C.horizon * C.groups, C.candidates, 1)
    assert slices[C.groups + 1, :, 0].tolist() == [104, 105, 106, 107]
    segments = to_groups(C.replace(advantage="segment"), x)
    assert segments.shape == (C.groups, C.candidates, C.horizon)
    assert segments[1, 2, :3].tolist() == [6, 106, 206]


def test_normaliser_merges_batches_exactly():
    data = 3 + 2 * np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    normalizer = Normalizer.create(5)
    for part in np.split(data, 6):
        normalizer = normalizer.update(jnp.asarray(part.reshape(10, 10, 5)))
    np.testing.assert_allclose(normalizer.mean, data.mean(0), rtol=1e-4)
    np.testing.assert_allclose(normalizer.variance, data.var(0), rtol=1e-4)


class Failing(Env):
    """A point on a line; at age 3 the first of its environments shows `bad`, in its physics too where that is so."""

    name, observation_size, action_size, dt, episode_length = "failing", 2, 1, 0.05, 40

    def __init__(self, bad, where):
        self.bad, self.where = bad, where

    def reset(self, key, n):
        start = jax.random.uniform(key, (n, 2), minval=-1, maxval=1)
        return EnvState(start, start, jnp.zeros(n), jnp.zeros(n), jnp.zeros(n, jnp.int32))

    def step(self, state, action):
        age = state.age + 1
        physics = state.physics + self.dt * jnp.concatenate([state.physics[:, 1:], action], axis=-1)
        ill = (age == 3) & (jnp.arange(len(age)) == 0)
        wrong = jnp.where(ill[:, None], self.bad, physics)
        physics = wrong if self.where == "physics" else physics
        reward = jnp.where(ill & (self.where == "reward"), self.bad, -(physics[:, 0] ** 2))
        obs = physics if self.where == "reward" else wrong
        return EnvState(physics, obs, reward, (age >= self.episode_length).astype(jnp.float32), age)

    def qpos(self, state):
        return jnp.zeros((state.age.shape[0], 9))


@pytest.mark.parametrize(("algo", "bad", "where"), [("hard", np.nan, "obs"), ("ppo", np.inf, "physics"),
                                                    ("soft", -np.inf, "reward")])  # fmt: skip
def test_one_environment_that_fails_does_not_stop_the_run(algo, bad, where):
    mode = {"advantage": "value"} if algo == "ppo" else {}
    trainer, iterate = compiled(with_method(algo, fork=False, **mode), Failing(bad, where), 3)
    state, metrics = iterate(trainer.init(jax.random.key(0)), 3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, state.params, state.normalizer)))
    assert metrics["not_finite"][0] >= 1 and metrics["skipped"].tolist() == [0, 0, 0]
    assert np.isfinite(state.env_state.physics).all() and np.isfinite(state.env_state.obs).all()


def test_devices_gather_steps_and_add_nothing_up_between_them():
    """How many processes share them is then no matter: sums over processes round otherwise than within one."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    env = Failing(1.0, "obs")
    trainer = make_trainer(SMALL.replace(fork=False), env, 3, everywhere)
    state = trainer.init(jax.random.key(0))
    places = jax.tree.map(lambda _: everywhere, state).replace(
        env_state=jax.tree.map(lambda _: spread, state.env_state)
    )
    program = jax.jit(trainer.iterate, static_argnums=1, out_shardings=(places, everywhere))
    program = program.lower(jax.device_put(state, places), 3).compile()
    sums = re.findall(r"= (\(?\w+)\[.*all-reduce\(", program.as_text())
    assert "all-gather" in program.as_text() and not [x for x in sums if "f" in x]
    one = make_trainer(SMALL.replace(fork=False), env, 3)
    got, want = program(jax.device_put(state, places)), jax.jit(one.iterate, static_argnums=1)(state, 3)
    chex.assert_trees_all_close(*((x[0].params, x[0].normalizer, x[1]) for x in (got, want)), rtol=1e-4, atol=1e-5)


def test_the_normaliser_leaves_out_rows_that_are_not_finite():
    data = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    clean = Normalizer.create(3).update(jnp.asarray(data[3:]))
    for bad in (np.nan, np.inf, -np.inf):
        data[0, 1], data[1], data[2, 2] = bad, bad, bad
        chex.assert_trees_all_close(Normalizer.create(3).update(jnp.asarray(data)), clean, rtol=1e-5)
        assert clean.normalize(jnp.asarray(data))[0, 1] == 0
    for diverged in (1e9, -3e19):  # a variance of these would be that of the rest of the run
        huge = Normalizer.create(3).update(jnp.asarray(np.vstack([data[3:], [[0, diverged, 0]]])))
        chex.assert_trees_all_close(huge, clean, rtol=1e-5)
    none = Normalizer.create(3).update(jnp.full((4, 3), np.nan))
    chex.assert_trees_all_close(none, Normalizer.create(3))


def test_early_stopping_makes_fewer_updates(env):
    config = SMALL.replace(learning_rate=3e-3, epochs=10)
    _, free = (f := compiled(config, env))[1](f[0].init(jax.random.key(0)), 2)
    _, held = (f := compiled(config.replace(target_kl=5e-4), env))[1](f[0].init(jax.random.key(0)), 2)
    assert (held["updates_used"] < 1).all() and (free["updates_used"] == 1).all()
    assert held["realised_kl"].mean() < free["realised_kl"].mean() / 2


def test_updates_that_are_stopped_do_not_hold_up_the_annealing(env):
    """The plan is the same for a method that target_kl stops and for one that it does not."""
    config = SMALL.replace(learning_rate=3e-3, target_kl=1e-4)
    trainer, iterate = compiled(config, env, iterations=3)
    state, metrics = iterate(trainer.init(jax.random.key(0)), 3)
    assert (metrics["updates_used"] < 1).all()
    counts = {
        type(x).__name__: int(x.count) for x in jax.tree.leaves(state.opt_state, is_leaf=has_count) if has_count(x)
    }
    planned = 3 * config.optimizer.updates_per_batch
    assert counts["ScaleByScheduleState"] == planned and 0 < counts["ScaleByAdamState"] < planned
    before, state = state.params, iterate(state, 1)[0]  # the rate is 0 from here on, but for rounding
    chex.assert_trees_all_close(before, state.params, rtol=0, atol=1e-8)


def has_count(x):
    return "count" in getattr(x, "_fields", ())


def test_limited_updates_stay_inside_the_trust_region(env):
    """With one minibatch an update sees all that the realised KL is measured on."""
    config = SMALL.replace(learning_rate=3e-2, minibatches=1, epochs=6)
    _, free = (f := compiled(config, env))[1](f[0].init(jax.random.key(0)), 3)
    _, held = (f := compiled(config.replace(limit_kl=0.01), env))[1](f[0].init(jax.random.key(0)), 3)
    assert (free["realised_kl"] > 0.015).all() and (held["realised_kl"] <= 0.01 * (1 + 1e-4)).all()
    assert (held["realised_kl"] > 0.005).all() and (held["step_fraction"] < 1).all()


@pytest.mark.parametrize("shrunk", [False, True])
def test_whether_a_transfer_is_capped_is_told_of_the_delta_that_is_moved(env, shrunk):
    trainer = make_trainer(SMALL.replace(project_target=shrunk), env, 3)
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    metrics = jax.eval_shape(lambda state: trainer.iterate(state, 1)[1], state)
    assert "delta" in metrics and ("transfers_fit" in metrics) == (not shrunk)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "hard"])  # the others are PPO's surrogate on other advantages
def test_learns_to_run(env, algo):
    """250k steps take a method from about -100 (random actions) to a forward gait."""
    config = tuned(algo, "value")
    iterations = int(250_000 // config.collection.steps)
    trainer, iterate = compiled(config, env, iterations)
    state, _ = iterate(jax.jit(trainer.init)(jax.random.key(0)), iterations)
    returns = jax.jit(trainer.evaluate, static_argnums=(2, 3))(state, jax.random.key(1), 8, True)
    assert returns.mean() > 300
