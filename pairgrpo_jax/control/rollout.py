"""Collecting a batch: fork, roll out, score, and cut into groups of candidates."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.control import env as env_lib
from pairgrpo_jax.control.config import Collection
from pairgrpo_jax.control.env import Env, EnvState
from pairgrpo_jax.control.networks import action_distribution, to_control
from pairgrpo_jax.control.normalizer import sound_rows


class Trajectory(NamedTuple):
    """What happened in H steps of n environments; every field `[H, n, ...]`."""

    obs: jax.Array  # raw, before the action
    action: jax.Array  # before squashing
    mean: jax.Array  # the Gaussian's mean
    reward: jax.Array


class Batch(NamedTuple):
    """G groups of K candidates of T steps; every field `[G, K, ...]`."""

    obs: jax.Array  # [G, K, T, D] normalised
    action: jax.Array  # [G, K, T, A]
    old_mean: jax.Array  # [G, K, T, A]
    old_logp: jax.Array  # [G, K, T]
    signal: Any  # what the method learns from
    value: jax.Array | None = None  # [G, K, T]
    value_target: jax.Array | None = None  # [G, K, T]


def start_states(env: Env, config: Collection, key: jax.Array) -> EnvState:
    """Trunks (or all environments, unforked) whose ages are staggered over the episode by whole horizons."""
    n = config.groups if config.fork else config.groups * config.candidates
    state = env.reset(key, n)
    segments = env.episode_length // config.horizon
    return state.replace(age=(jnp.arange(n) % segments) * config.horizon)


def next_states(env: Env, config: Collection, state: EnvState, key: jax.Array) -> EnvState:
    """The states to go on from: a uniformly random branch of each group, reset at the time limit.

    The best branch would bias the distribution of states.
    """
    branch_key, reset_key = jax.random.split(key)
    if config.fork:
        branch = jax.random.randint(branch_key, (config.groups,), 0, config.candidates)
        state = env_lib.select(state, jnp.arange(config.groups) * config.candidates + branch)
    return env_lib.where(state.done > 0, env.reset(reset_key, state.done.shape[0]), state)


def collect(env: Env, config: Collection, policy, state: EnvState, key: jax.Array, *, squash: bool):
    """Rolls all branches H steps.

    Args:
      env: the simulator.
      config: settings.
      policy: `obs [n,D] raw -> mean [n,A], log_std [A]`.
      state: the trunks.
      key: PRNG key.
      squash: see `to_control`.

    Returns:
      The branches' last states, `[n]`, and the `Trajectory`.
    """
    branches = env_lib.fork(state, config.candidates) if config.fork else state

    def step(state, key):
        mean, log_std = policy(state.obs)
        action = action_distribution(mean, log_std).sample(seed=key)
        after = env.step(state, to_control(action, squash))
        return after, Trajectory(state.obs, action, mean, after.reward)

    return jax.lax.scan(step, branches, jax.random.split(key, config.horizon))


def mend(trajectory: Trajectory, last: EnvState) -> tuple[Trajectory, EnvState, jax.Array]:
    """Lets a run go on where a simulator fails.

    Returns:
      The trajectory, rewards that are not finite 0; the last states, done where a reward of the rollout is not finite
      or an observation not sound (`sound_rows`), so that they are reset; and how many steps are not. Observations stay:
      `Normalizer` leaves them out.
    """
    good = sound_rows(trajectory.obs) & jnp.isfinite(trajectory.reward)  # [H, n]
    whole = jnp.all(good, axis=0) & sound_rows(last.obs)
    reward = jnp.where(jnp.isfinite(trajectory.reward), trajectory.reward, 0)
    last = last.replace(done=jnp.where(whole, last.done, 1.0))
    return trajectory._replace(reward=reward), last, jnp.sum(~good) + jnp.sum(~sound_rows(last.obs))


def score(config: Collection, reward: jax.Array, values: jax.Array | None) -> jax.Array:
    """The number by which candidates are compared.

    Args:
      config: settings; `advantage` decides.
      reward: `[H, n]`.
      values: `[H + 1, n]` in value mode.

    Returns:
      `[H, n]` advantages (of rewards times max(1 - gamma, 1 / H)) or rewards to go, or for segments `[n]` discounted
      returns.
    """
    reward = reward.T
    discounts = jnp.full_like(reward, config.gamma)  # the time limit truncates, it never terminates
    if values is not None:
        # Values are then weighted means of rewards, of order 1 to 10 at any gamma: easy on critic and norm clip.
        scaled = reward * max(1 - config.gamma, 1 / config.horizon)
        return core.gae(scaled, values[:-1].T, values[-1], discounts, gae_lambda=config.gae_lambda).T
    to_go = core.discounted_returns(reward, discounts)
    return to_go[:, 0] if config.advantage == "segment" else to_go.T


def to_groups(config: Collection, x: jax.Array) -> jax.Array:
    """`[H, n, ...]` -> `[G, K, T, ...]`: one group per (time, group) slice, T = 1, or per segment, T = H."""
    x = x.reshape(config.horizon, config.groups, config.candidates, *x.shape[2:])
    if config.advantage == "segment":
        return jnp.moveaxis(x, 0, 2)
    return x.reshape(config.units, config.candidates, 1, *x.shape[3:])


def make_batch(config, trajectory: Trajectory, obs, log_std, values, signal_fn) -> tuple[Batch, jax.Array]:
    """Cuts a trajectory into groups.

    Args:
      config: settings.
      trajectory: `[H, n]`.
      obs: `[H, n, D]` normalised observations.
      log_std: `[A]` of the policy that acted.
      values: `[H + 1, n]`, or None.
      signal_fn: `scores [G, K] -> signal`.

    Returns:
      The batch and the scores `[G, K]`.
    """
    scores = score(config, trajectory.reward, values)
    grouped = scores.reshape(config.units, config.candidates)
    logp = jnp.asarray(action_distribution(trajectory.mean, log_std).log_prob(trajectory.action))
    fields = [to_groups(config, x) for x in (obs, trajectory.action, trajectory.mean, logp)]
    batch = Batch(*fields, signal=signal_fn(grouped))
    if values is not None:
        value, target = to_groups(config, values[:-1]), to_groups(config, values[:-1] + scores)
        batch = batch._replace(value=value, value_target=target)
    return batch, grouped
