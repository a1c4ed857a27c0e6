"""Speed of control training as ratios: `python -m experiments.benchmarks.control --help`.

Prints raw simulator steps per second (random actions), training steps per second with updates included, their
ratio, and what one Hard update costs beside one GRPO update. Everything alternates, and medians are compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tyro
from mujoco import rollout

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.control import ControlConfig, Env, fork, make_env, make_trainer, tuned
from pairgrpo_jax.control.mujoco_env import MujocoHalfCheetah, load_model
from pairgrpo_jax.control.networks import make_networks
from pairgrpo_jax.control.rollout import Batch
from pairgrpo_jax.control.trainer import make_loss, make_optimizer
from pairgrpo_jax.methods import Adaptive, Verdict
from pairgrpo_jax.training import make_update_step


@dataclass(frozen=True)
class Benchmark:
    """What to measure."""

    env: str = "mujoco"
    """Simulator, as in experiments.halfcheetah."""
    method: str = "hard"
    """Method, with its tuned settings in value mode."""
    repeats: int = 5
    """Measurements of each, alternating; the median counts."""


def main() -> None:
    """Measures and prints."""
    args = tyro.cli(Benchmark, description=__doc__)
    env, config = make_env(args.env), tuned(args.method, "value")
    steps = config.collection.steps
    simulate = raw_mujoco(config) if isinstance(env, MujocoHalfCheetah) else raw_brax(env, config)
    raw, training = alternate([simulate, training_iteration(env, config)], args.repeats)
    about = f"{processor.label()}, {jax.devices()[0].device_kind}"
    print(f"{args.env}, {args.method}, {about}, {steps:,} steps a batch")
    print(f"raw simulator     {steps / raw:9,.0f} steps/s")
    print(f"training          {steps / training:9,.0f} steps/s = {raw / training:.0%} of raw")
    hard, grpo = alternate([one_update(env, "hard"), one_update(env, "grpo")], 20 * args.repeats)
    print(f"one update        hard {1e3 * hard:.2f} ms, grpo {1e3 * grpo:.2f} ms, ratio {hard / grpo:.2f}")


def alternate(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn so that other load on the machine falls on all alike."""
    times = [[] for _ in functions]
    for function in functions:
        function()  # compiles
    for _ in range(repeats):
        for spent, function in zip(times, functions):
            began = time.perf_counter()
            jax.block_until_ready(function())
            spent.append(time.perf_counter() - began)
    return [float(np.median(spent)) for spent in times]


def raw_mujoco(config: ControlConfig) -> Callable[[], object]:
    """`mujoco.rollout` on as many environments and control steps as an iteration has, on all CPUs."""
    model, threads = load_model(), os.cpu_count() or 1
    datas = [mujoco.MjData(model) for _ in range(threads)]
    n = config.collection.groups * config.collection.candidates
    start = np.zeros((n, mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)))
    actions = np.random.default_rng(0).uniform(-1, 1, (n, config.collection.horizon, 6))
    pool = rollout.Rollout(nthread=threads)
    return lambda: pool.rollout(model, datas, start, np.repeat(actions, 5, axis=1))[0]


def raw_brax(env: Env, config: ControlConfig) -> Callable[[], object]:
    """A compiled scan over random actions, with as many environments and steps as an iteration has."""
    state = fork(env.reset(jax.random.key(0), config.collection.groups), config.collection.candidates)
    n = config.collection.groups * config.collection.candidates

    def step(state, key):
        state = env.step(state, jax.random.uniform(key, (n, env.action_size), minval=-1))
        return state, state.reward

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[1])
    keys = jax.random.split(jax.random.key(1), config.collection.horizon)
    return lambda: run(state, keys)


def training_iteration(env: Env, config: ControlConfig) -> Callable[[], object]:
    """One iteration, collection and all updates included, from a state that moves on."""
    trainer = make_trainer(config, env, iterations=100)
    program = jax.jit(trainer.iterate, static_argnums=1, donate_argnums=0)
    holder = [jax.jit(trainer.init)(jax.random.key(0))]

    def run():
        holder[0], metrics = program(holder[0], 1)
        return metrics

    return run


def one_update(env: Env, name: str) -> Callable[[], object]:
    """One compiled update of the policy on a minibatch as in training, no critic; its labels are made beforehand."""
    config = tuned(name, "value")
    size = config.collection.units // config.optimizer.minibatches
    networks = make_networks(config.network, env.action_size, critic=False)
    trainer = make_trainer(config, env, iterations=100)
    state = jax.jit(trainer.init)(jax.random.key(0)).replace(env_state=None)
    optimizer = make_optimizer(config.optimizer, 100)
    state = state.replace(params={"policy": state.params["policy"]})
    state = state.replace(opt_state=optimizer.init(state.params))
    shape = (size, config.collection.candidates, 1)
    obs, action = (jax.random.normal(jax.random.key(i), (*shape, d)) for i, d in enumerate((env.observation_size, 6)))
    scores = jax.random.normal(jax.random.key(3), shape[:2])
    adaptive = Adaptive(state.delta_step, state.multiplier)
    signal = config.method.signal(Verdict(scores), jax.random.key(4), adaptive)
    batch = Batch(obs, action, jnp.zeros_like(action), jnp.full(shape, -6.0), signal)
    loss = make_loss(config, networks, adaptive, jnp.zeros(6))
    update = make_update_step(loss, optimizer, donate=False)
    return lambda: update(state, batch)


if __name__ == "__main__":
    run_main(main)
