"""What one iteration draws, fits and keeps, against oracles, on an environment whose observations are known ahead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pairgrpo_jax import core
from pairgrpo_jax.control import make_trainer, tuned
from pairgrpo_jax.control.env import Env, EnvState
from pairgrpo_jax.control.networks import make_networks
from pairgrpo_jax.control.rollout import Batch, Trajectory, make_batch
from pairgrpo_jax.control.trainer import fit, make_loss
from pairgrpo_jax.methods import Adaptive
from pairgrpo_jax.methods.method import Advantages
from pairgrpo_jax.training import TrainState

H, N, A = 4, 64, 2


class Train(Env):
    """It drives on by 1 a step whatever the actions, whose sum is the reward; `physics` ends with the last 2 H."""

    name, observation_size, action_size, dt, episode_length = "train", 2, A, 0.05, 80 * H

    def reset(self, key, n):
        place = 20 + 5 * jax.random.normal(key, (n, 2))
        return EnvState(jnp.zeros((n, 2 * H, A)), place, jnp.zeros(n), jnp.zeros(n), jnp.zeros(n, jnp.int32))

    def step(self, state, action):
        past, age = jnp.concatenate([state.physics[:, 1:], action[:, None]], axis=1), state.age + 1
        done = (age >= self.episode_length).astype(jnp.float32)
        return EnvState(past, state.obs + 1, jnp.sum(action, axis=-1), done, age)

    def qpos(self, state):
        return jnp.zeros((state.age.shape[0], 9))


SIGMA = 0.1  # actions then are next to never clipped
CONFIG = tuned("grpo").replace(groups=16, candidates=4, horizon=H, epochs=3, minibatches=4, hidden=(8,), target_kl=0.0)
CONFIG = CONFIG.replace(init_log_std=float(np.log(SIGMA)))
NETWORKS = make_networks(CONFIG.network, A, critic=True)


@functools.cache
def run():
    """The trainer, and the states before, between and after two iterations."""
    trainer = make_trainer(CONFIG, Train(), 2)
    states, iterate = [trainer.init(jax.random.key(0))], jax.jit(trainer.iterate, static_argnums=1)
    for _ in range(2):
        states.append(iterate(states[-1], 1)[0])
    return trainer, states


def seen(states):
    """`[2 H, N, D]`, the raw observations before each action; no environment ends in two iterations."""
    return states[0].env_state.obs + jnp.arange(2 * H)[:, None, None]


def test_the_noise_of_every_step_and_iteration_is_its_own():
    _, states = run()
    keys = [jax.random.key_data(state.key).tolist() for state in states]
    assert keys[0] != keys[1] != keys[2] != keys[0]
    actions, noise = jnp.moveaxis(states[2].env_state.physics, 1, 0), []
    for i, state in enumerate(states[:2]):
        part = slice(i * H, (i + 1) * H)
        mean, log_std = NETWORKS.act(state.params, state.normalizer.normalize(seen(states)[part]))
        noise.append((actions[part] - mean) / jnp.exp(log_std))
    noise = np.concatenate(noise).reshape(2 * H, N * A)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.1)
    assert np.abs(np.corrcoef(noise) - np.eye(2 * H)).max() < 0.4  # 4.5 standard errors


def test_the_normaliser_has_the_statistics_of_what_was_observed():
    _, states = run()
    assert states[0].normalizer.mean.tolist() == [0, 0] and states[0].normalizer.variance.tolist() == [1, 1]
    for i in (1, 2):
        obs, normalizer = np.asarray(seen(states)[: i * H], np.float64).reshape(-1, 2), states[i].normalizer
        np.testing.assert_allclose(normalizer.count, len(obs), rtol=1e-5)
        np.testing.assert_allclose(normalizer.mean, obs.mean(0), rtol=1e-4)
        np.testing.assert_allclose(normalizer.variance, obs.var(0), rtol=1e-4)


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_plays_the_mean_or_draws_on_normalised_observations(deterministic):
    """An episode's return is the sum of its actions, whose means follow from where it started."""
    trainer, states = run()
    state, key, steps, episodes = states[2], jax.random.key(1), Train.episode_length, 512
    returns = jax.jit(trainer.evaluate, static_argnums=(2, 3))(state, key, episodes, deterministic)
    start = Train().reset(jax.random.split(key)[0], episodes).obs
    obs = state.normalizer.normalize(start + jnp.arange(steps)[:, None, None])
    mean, log_std = NETWORKS.act(state.params, obs)
    assert jnp.abs(mean).max() + 4 * jnp.exp(log_std.max()) < 1  # nothing is clipped
    assert returns.shape == (episodes,)
    rest = np.asarray(returns - mean.sum((0, -1)))
    if deterministic:
        np.testing.assert_allclose(rest, 0, atol=1e-3)
    else:
        std = float(jnp.sqrt(steps * jnp.sum(jnp.exp(2 * log_std))))
        np.testing.assert_allclose(rest.std(), std, rtol=0.15)  # 5 standard errors
        assert abs(rest.mean()) < 5 * std / np.sqrt(episodes)


def test_the_critic_is_fitted_to_value_plus_advantage():
    """With lambda 1 that is the discounted sum of rewards times 1 - gamma, and of what the last state is worth."""
    config = CONFIG.collection.replace(gae_lambda=1.0, gamma=0.5)
    rng = np.random.default_rng(0)
    reward, values = rng.normal(size=(H, N)), rng.normal(size=(H + 1, N))
    actions, log_std = jnp.zeros((H, N, A)), jnp.zeros(A)
    trajectory = Trajectory(jnp.zeros((H, N, 2)), actions, actions, jnp.asarray(reward))
    batch, scores = make_batch(config, trajectory, trajectory.obs, log_std, jnp.asarray(values), lambda x: x)
    assert batch.value is not None and batch.value_target is not None
    target = values[-1]
    for t in reversed(range(H)):
        target = 0.5 * reward[t] + 0.5 * target
        rows = slice(t * config.groups, (t + 1) * config.groups)
        np.testing.assert_allclose(np.ravel(batch.value_target[rows]), target, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose((batch.value_target - batch.value)[..., 0], scores, rtol=1e-5, atol=1e-6)


def test_the_bonus_is_the_entropy():
    """A bonus lowers the loss, by the Gaussian's entropy times its weight."""
    obs, actions, log_std = jnp.zeros((H, N, 2)), jnp.zeros((H, N, A)), jnp.log(jnp.array([0.5, 0.25]))
    trajectory, values = Trajectory(obs, actions, actions, jnp.zeros((H, N))), jnp.zeros((H + 1, N))
    batch, _ = make_batch(CONFIG.collection, trajectory, obs, log_std, values, Advantages)
    params = NETWORKS.init(jax.random.key(0), 2)
    params["policy"]["params"]["log_std"] = log_std
    adaptive = Adaptive(jnp.zeros((), jnp.int32), jnp.ones(()))
    losses = [
        core.evaluate(make_loss(CONFIG.replace(entropy_weight=w), NETWORKS, adaptive, log_std)(params, batch))[0]
        for w in (0.0, 0.1)
    ]
    entropy = sum(0.5 * np.log(2 * np.pi * np.e * std**2) for std in (0.5, 0.25))
    np.testing.assert_allclose(losses[1] - losses[0], -0.1 * entropy, rtol=1e-5)


def test_every_epoch_goes_through_the_batch_once_in_an_order_of_its_own():
    """The gradient of a row's parameter is 1 where an update has that row; the optimizer keeps the gradients."""
    units, updates = CONFIG.collection.units, CONFIG.optimizer.updates_per_batch

    def keep(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates), jnp.concatenate([state[1:], updates["policy"][None]])

    def loss(params, batch):
        return jnp.sum(params["policy"][batch.obs]), {}

    recorder = optax.GradientTransformation(lambda params: jnp.zeros((updates, units)), keep)
    state = TrainState.create({"policy": jnp.zeros(units)}, recorder, jax.random.key(0))
    batch = Batch(*[jnp.arange(units)] * 4, signal=None)
    after, _ = jax.jit(lambda state, key: fit(CONFIG, loss, recorder, state, batch, key))(state, jax.random.key(1))
    kept = np.asarray(after.opt_state).reshape(3, 4, units)
    np.testing.assert_array_equal(kept.sum(1), 1)
    np.testing.assert_array_equal(kept.sum(2), units / 4)
    together = np.einsum("emu,emv->euv", kept, kept)  # whether two rows share an update
    assert all((together[i] != together[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))
