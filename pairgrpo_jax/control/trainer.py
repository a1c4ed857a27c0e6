"""The training loop of every method: collect a batch, update on it for a few epochs, go on. One compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pairgrpo_jax import core
from pairgrpo_jax.control.config import ControlConfig, ControlOptimizer
from pairgrpo_jax.control.env import Env
from pairgrpo_jax.control.networks import Networks, action_distribution, make_networks, to_control
from pairgrpo_jax.control.normalizer import Normalizer
from pairgrpo_jax.control.rollout import Batch, collect, make_batch, mend, next_states, start_states
from pairgrpo_jax.core.terms import with_more
from pairgrpo_jax.methods import Adaptive, Likelihoods, Verdict
from pairgrpo_jax.methods.method import terms_of
from pairgrpo_jax.training import TrainState, annealed_to, make_update_step
from pairgrpo_jax.training.optimizer import clipped_adam


class Trainer(NamedTuple):
    """Pure functions of one run.

    Attributes:
      init: `key -> TrainState`.
      iterate: `(TrainState, iterations) -> (TrainState, metrics [iterations])`; `iterations` is static.
      evaluate: `(TrainState, key, episodes, deterministic) -> returns [episodes]` of fresh episodes; the last two
        are static.
      episode: `(TrainState, key, steps) -> positions [steps, 9], rewards [steps]` of one deterministic episode,
        for drawing.
    """

    init: Callable[[jax.Array], TrainState]
    iterate: Callable[[TrainState, int], tuple[TrainState, core.Metrics]]
    evaluate: Callable[[TrainState, jax.Array, int, bool], jax.Array]
    episode: Callable[[TrainState, jax.Array, int], tuple[jax.Array, jax.Array]]


class Learner(NamedTuple):
    """What is fitted, how, and where the batches are that it is fitted to; None: where they come from."""

    networks: Networks
    optimizer: optax.GradientTransformation
    place: jax.sharding.Sharding | None = None


def make_trainer(
    config: ControlConfig, env: Env, iterations: int, place: jax.sharding.Sharding | None = None
) -> Trainer:
    """Builds the functions of a run of `iterations` iterations (the length over which learning rates anneal).

    Args:
      config: method and sizes.
      env: the simulator.
      iterations: of the whole run.
      place: of environments spread over devices, where their steps are gathered: on each, which then make the same
        updates, so that sums do not depend on how many processes share the devices.

    Raises:
      ValueError: for settings that do not fit together.
    """
    config.check(env.episode_length)
    networks = make_networks(config.network, env.action_size, critic=config.collection.critic)
    learner = Learner(networks, make_optimizer(config.optimizer, iterations), place)

    def init(key):
        key, network_key, env_key = jax.random.split(key, 3)
        return TrainState.create(
            networks.init(network_key, env.observation_size),
            learner.optimizer,
            key,
            normalizer=Normalizer.create(env.observation_size),
            env_state=start_states(env, config.collection, env_key),
        )

    def iterate(state, count):
        return jax.lax.scan(lambda state, _: iteration(env, config, learner, state), state, length=count)

    def play(state, key, episodes, deterministic, steps):
        squash = config.network.squash
        return play_episodes(env, networks, state, key, episodes, deterministic, steps, squash=squash)

    def evaluate(state, key, episodes, deterministic):
        return jnp.sum(play(state, key, episodes, deterministic, env.episode_length)[1], axis=0)

    def episode(state, key, steps):
        return jax.tree.map(lambda x: x[:, 0], play(state, key, 1, True, steps))

    return Trainer(init, iterate, evaluate, episode)


def iteration(env: Env, config: ControlConfig, learner: Learner, state: TrainState) -> tuple[TrainState, core.Metrics]:
    """Collects one batch and updates on it."""
    key, act_key, pair_key, next_key, shuffle_key = jax.random.split(state.key, 5)
    networks, optimizer, place = learner
    method, adaptive, norm = config.method, Adaptive(state.delta_step, state.multiplier), state.normalizer

    def act(obs):
        return networks.act(state.params, norm.normalize(obs))

    last, trajectory = collect(env, config.collection, act, state.env_state, act_key, squash=config.network.squash)
    trajectory, last, failures = mend(trajectory, last)
    if place is not None:
        trajectory = jax.lax.with_sharding_constraint(trajectory, place)
    obs = norm.normalize(jnp.concatenate([trajectory.obs, last.obs[None]]))
    values = networks.values(state.params, obs)
    _, log_std = act(last.obs)
    batch, scores = make_batch(
        config.collection,
        trajectory,
        obs[:-1],
        log_std,
        values,
        lambda x: method.signal(Verdict(x), pair_key, adaptive),
    )
    loss = make_loss(config, networks, adaptive, log_std)
    # Inner loops need not carry the simulators.
    fitted, metrics = fit(config, loss, optimizer, state.replace(env_state=None), batch, shuffle_key)
    kl = realised_kl(networks, fitted.params, batch, log_std)
    metrics |= method.report(adaptive)
    asked = None if getattr(method, "project_target", False) else metrics.get("delta")  # else it is shrunk
    metrics |= core.conditions(scores, getattr(batch.signal, "pairs", None), delta=asked)
    metrics |= {
        "realised_kl": kl,
        "not_finite": failures,
        "return": jnp.mean(trajectory.reward) * env.episode_length,
        "std": jnp.mean(jnp.exp(log_std)),
    }
    renewed = method.renewed(adaptive, kl)
    planned = renewed.batches * config.optimizer.updates_per_batch
    return fitted.replace(
        key=key,
        opt_state=annealed_to(planned, fitted.opt_state),
        delta_step=renewed.batches,
        multiplier=renewed.multiplier,
        normalizer=norm.update(trajectory.obs),
        env_state=next_states(env, config.collection, last, next_key),
    ), metrics


def make_optimizer(config: ControlOptimizer, iterations: int) -> optax.GradientTransformation:
    """Adam with a clipped global norm; the rate decays linearly over the run by option."""
    updates = iterations * config.updates_per_batch
    rate = optax.linear_schedule(config.learning_rate, 0.0, updates) if config.anneal else config.learning_rate
    return clipped_adam(config.max_grad_norm, rate, eps=1e-5)


def make_loss(config: ControlConfig, networks: Networks, adaptive: Adaptive, old_log_std):
    """`(params, batch) -> Objective`: the method's terms, plus value error and entropy bonus, alike for all methods."""

    def loss(params, batch: Batch) -> core.Objective:
        mean, log_std = networks.act(params, batch.obs)
        distribution = action_distribution(mean, log_std)
        logp = distribution.log_prob(batch.action)
        kl = core.gaussian_kl(mean, log_std, batch.old_mean, old_log_std)
        likelihoods = Likelihoods(jnp.asarray(logp), batch.old_logp, kl=kl)
        entropy, how = jnp.asarray(distribution.entropy()), config.optimizer
        more = {"kl_old": core.mean_term(kl), "entropy": core.mean_term(entropy, weight=-how.entropy_weight)}
        values = networks.values(params, batch.obs)
        if values is not None and batch.value is not None and batch.value_target is not None:
            more |= core.value_terms(values, batch.value, batch.value_target, value_weight=how.value_weight)
        return with_more(terms_of(config.method, likelihoods, batch.signal, adaptive), more)

    return loss


def fit(config: ControlConfig, loss, optimizer, state: TrainState, batch: Batch, key: jax.Array):
    """`epochs` passes of shuffled minibatch updates; by option no more of them once the KL exceeds `target_kl`.

    Returns:
      The new state and the metrics, means over the updates that were made.
    """
    how = config.optimizer
    limit = ("kl_old", how.limit_kl) if how.limit_kl else None
    cut = {name: name == "policy" for name in state.params} if limit else None
    update = make_update_step(loss, optimizer, limit=limit, limit_mask=cut, parallel=None)

    def epoch(carry, key):
        order = jax.random.permutation(key, config.collection.units).reshape(how.minibatches, -1)
        return jax.lax.scan(minibatch, carry, order)

    def minibatch(carry, index):
        state, stop = carry
        part = jax.tree.map(lambda x: x[index], batch)
        if not how.target_kl:
            state, metrics = update(state, part)
            return (state, stop), metrics | {"used": jnp.ones(())}
        after, metrics = update(state, part)
        stop = stop | (metrics["kl_old"] > how.target_kl)  # measured before this update, which is then not made
        state = jax.tree.map(lambda new, old: jnp.where(stop, old, new), after, state)
        return (state, stop), metrics | {"used": 1.0 - stop}

    (state, _), metrics = jax.lax.scan(epoch, (state, jnp.zeros((), bool)), jax.random.split(key, how.epochs))
    used, skipped = metrics.pop("used"), metrics.pop("skipped")
    made = used * (1 - skipped)  # a skipped update's loss and gradient are not finite
    means = {name: jnp.sum(jnp.where(made > 0, x, 0)) / jnp.maximum(jnp.sum(made), 1) for name, x in metrics.items()}
    return state, means | {"updates_used": jnp.mean(used), "skipped": jnp.sum(used * skipped) / jnp.sum(used)}


def realised_kl(networks: Networks, params, batch: Batch, old_log_std: jax.Array) -> jax.Array:
    """Mean KL(pi_theta || pi_old) over the batch's states, in nats."""
    mean, log_std = networks.act(params, batch.obs)
    return jnp.mean(core.gaussian_kl(mean, log_std, batch.old_mean, old_log_std))


def play_episodes(
    env: Env, networks: Networks, state: TrainState, key, episodes, deterministic, steps, *, squash: bool
):
    """Positions `[steps, episodes, 9]` and rewards `[steps, episodes]` of fresh episodes."""
    reset_key, act_key = jax.random.split(key)

    def step(env_state, key):
        mean, log_std = networks.act(state.params, state.normalizer.normalize(env_state.obs))
        action = mean if deterministic else action_distribution(mean, log_std).sample(seed=key)
        env_state = env.step(env_state, to_control(action, squash))
        return env_state, (env.qpos(env_state), env_state.reward)

    return jax.lax.scan(step, env.reset(reset_key, episodes), jax.random.split(act_key, steps))[1]
