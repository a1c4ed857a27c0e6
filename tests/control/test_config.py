"""Every setting is checked before any compute, and every setting changes something."""

import dataclasses

import jax
import numpy as np
import pytest

from pairgrpo_jax.control import make_env, make_trainer, tuned
from pairgrpo_jax.control.trainer import make_optimizer
from pairgrpo_jax.core.bounds import Settings
from pairgrpo_jax.methods import METHODS, Dpo, Grpo, Ppo, SoftPair

SMALL = tuned("hard").replace(groups=4, candidates=4, horizon=8, epochs=2, minibatches=4, hidden=(8,), delta_0=0.1)
SMALL = SMALL.replace(fork=True, scheme="matched", max_grad_norm=10.0, target_kl=0.0)

BAD = [
    ({"candidates": 1}, "candidates must be >= 2"),
    ({"candidates": 3}, "candidates=3 must be even"),
    ({"horizon": 64}, "horizon=64 must divide the episode length 1000; try 50"),
    ({"delta_0": -0.1}, "delta_0 must be >= 0"),
    ({"minibatches": 7}, "minibatches=7 must divide the 32 groups"),
    ({"gamma": 1.5}, "gamma must be in"),
    ({"epochs": float("inf")}, "epochs must be a whole number"),
    ({"beta": float("nan")}, "beta must be >= 0"),
    ({"limit_kl": -1.0}, "limit_kl must be >= 0"),
    ({"method": Ppo(), "advantage": "segment"}, "advantage must be"),
    ({"method": Dpo()}, "method dpo learns from a data set's pairs"),
    ({"advantage": "segment", "fork": False}, "fork=False"),
    ({"advantage": "q"}, "advantage='q' is unknown"),
    ({"scheme": "best"}, "scheme='best' is unknown"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(next(iter(c))) + str(i) for i, (c, _) in enumerate(BAD)])
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.replace(**changes).check(episode_length=1000)


def outcome(config, iterations=2):
    """Numbers that any setting must reach: parameters after two iterations, and how much was collected."""
    trainer = make_trainer(config, make_env("mujoco"), iterations=3)
    state, metrics = jax.jit(trainer.iterate, static_argnums=1)(trainer.init(jax.random.key(0)), iterations)
    policy = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params["policy"])])
    return np.append(policy, [config.collection.steps, metrics["std"][0], policy.size])


ALTERNATIVES = {
    "method": ({}, Grpo()),
    "advantage": ({}, "reward_to_go"),
    "groups": ({}, 8),
    "candidates": ({}, 2),
    "horizon": ({}, 4),
    "fork": ({}, False),
    "gamma": ({}, 0.5),
    "trace": ({}, 0.2),
    "epochs": ({}, 1),
    "minibatches": ({}, 2),
    "learning_rate": ({}, 1e-2),
    "anneal": ({}, False),
    "max_grad_norm": ({}, 1e-7),
    "clip": ({"method": SoftPair(scheme="matched"), "learning_rate": 3e-2}, 0.01),
    "clip_high": ({"method": SoftPair(scheme="matched"), "learning_rate": 3e-2}, 0.01),
    "level": ({"method": SoftPair(scheme="matched"), "advantage": "segment", "minibatches": 2}, "sequence"),
    "baseline": ({"method": Grpo()}, "leave_one_out"),
    "scale": ({"method": Grpo()}, "none"),
    "length_normalize": ({"advantage": "segment", "minibatches": 2}, True),
    "hinge": ({"beta": 0.0, "alpha": 50.0}, "candidates"),
    "scheme": ({}, "best_worst"),
    "margin": ({}, 2.0),
    "beta": ({"method": SoftPair(scheme="matched")}, 5.0),
    "alpha": ({"beta": 0.0}, 50.0),
    "delta_0": ({}, 0.02),
    "delta_gamma": ({}, 0.5),
    "fit": ({}, "forward"),
    "trust_region": ({"beta": 1e-6}, "lagrangian"),
    "project_target": ({}, True),
    "target_kl": ({"learning_rate": 3e-2}, 1e-4),
    "limit_kl": ({"learning_rate": 3e-2}, 1e-4),
    "entropy_weight": ({}, 0.5),
    "value_weight": ({}, 5.0),
    "hidden": ({}, (16,)),
    "init_log_std": ({}, 0.5),
    "min_log_std": ({"init_log_std": 0.2}, 0.2),
    "squash": ({"init_log_std": 1.0}, True),
}


def test_every_setting_is_in_the_list():
    def names(settings):
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            yield from names(value) if isinstance(value, Settings) and field.name != "method" else [field.name]

    methods = (name for method in METHODS if method.online for name in names(method()))
    # All candidates of a batch have the same number of control steps, so the rules of `aggregate` coincide here.
    assert {*ALTERNATIVES, "aggregate"} == {*names(SMALL), *methods}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_setting_changes_something(name):
    base, value = ALTERNATIVES[name]
    config = SMALL.replace(**base)
    before, after = outcome(config), outcome(config.replace(**{name: value}))
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-7


def test_the_learning_rate_reaches_zero_at_the_end_of_the_budget():
    optimizer = make_optimizer(SMALL.optimizer, iterations=3)
    params = {"w": np.ones(2, np.float32)}
    state = optimizer.init(params)
    for _ in range(3 * SMALL.optimizer.updates_per_batch + 1):
        updates, state = optimizer.update(params, state)
    assert np.abs(updates["w"]).max() == 0
