"""Every setting is checked before any compute, and every setting changes something."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

from pairgrpo_jax.control import Collection, ControlConfig, ControlOptimizer, Network, make_env, make_trainer, tuned
from pairgrpo_jax.control.trainer import make_optimizer
from pairgrpo_jax.methods import METHODS, Dpo, Grpo, HardPair, Ppo, method_class

HARD = HardPair(scheme="matched", beta=0.03, alpha=2.0, delta_0=0.1, delta_gamma=1.0, hinge="tokens")
SMALL = ControlConfig(
    HARD,
    Collection(groups=4, candidates=4, horizon=8, fork=True),
    ControlOptimizer(epochs=2, minibatches=4, max_grad_norm=10.0, target_kl=0.0),
    Network(hidden=(8,)),
)
ONLINE = {method.name: method for method in METHODS if method.online}
PARTS = {"collection": Collection, "optimizer": ControlOptimizer, "network": Network}


def small(name, **changes):
    """SMALL with another method, which has Hard's scheme and beta where it has such fields."""
    plain = method_class(name)()
    own = {field: getattr(HARD, field) for field in ("scheme", "beta") if plain.has(field)}
    return SMALL.replace(method=HARD if name == "hard" else plain.replace(**own)).replace(**changes)


BAD = [
    ({"candidates": 1}, "candidates must be >= 2"),
    ({"candidates": 3}, "candidates=3 must be even"),
    ({"horizon": 64}, "horizon=64 must divide the episode length 1000; try 50"),
    ({"delta_0": -0.1}, "delta_0 must be >= 0"),
    ({"minibatches": 7}, "minibatches=7 must divide the 32 groups"),
    ({"gamma": 1.5}, "gamma must be in (0, 1], got 1.5"),
    ({"gae_lambda": -0.5}, "gae_lambda must be in [0, 1], got -0.5"),
    ({"beta": float("nan")}, "beta must be >= 0"),
    ({"groups": float("nan")}, "groups must be a whole number"),
    ({"groups": float("inf")}, "groups must be a whole number"),
    ({"groups": 2.5}, "groups must be a whole number"),
    ({"limit_kl": -1.0}, "limit_kl must be >= 0"),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
    ({"learning_rate": "fast"}, "learning_rate must be a number"),
    ({"epochs": float("inf")}, "epochs must be a whole number"),
    ({"hidden": ()}, "hidden must hold widths >= 1"),
    ({"init_log_std": -6.0}, "init_log_std=-6.0 must be >= min_log_std=-5.0"),
    ({"method": Ppo(), "advantage": "segment"}, "advantage must be"),
    ({"method": Dpo()}, "method dpo learns from a data set's pairs"),
    ({"method": Grpo(aggregate="constant")}, "aggregate='constant' has no effect here"),
    ({"method": Grpo(level="sequence")}, "level='sequence' has no effect with advantage=\"value\""),
    ({"advantage": "reward_to_go", "length_normalize": True}, "length_normalize=True has no effect with advantage"),
    ({"advantage": "segment", "gae_lambda": 0.5}, "gae_lambda=0.5 has no effect without a critic"),
    ({"advantage": "segment", "value_weight": 0.1}, "value_weight=0.1 has no effect without a critic"),
    ({"epochs": 1, "minibatches": 1, "target_kl": 0.2}, "target_kl=0.2 has no effect with one update a batch"),
    ({"anneal": "no"}, "anneal must be True or False, got 'no'"),
    ({"advantage": "segment", "fork": False}, "fork=False"),
    ({"advantage": "q"}, "advantage='q' is unknown"),
    ({"scheme": "best"}, "scheme='best' is unknown"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(next(iter(c))) + str(i) for i, (c, _) in enumerate(BAD)])
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SMALL.replace(**changes).check(episode_length=1000)


@pytest.mark.parametrize(("changes", "message"), [case for case in BAD if "horizon" not in case[0]])
def test_all_but_the_horizon_are_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SMALL.replace(**changes)


def test_presets_name_what_is_unknown():
    with pytest.raises(ValueError, match="method 'sarsa' is unknown"):
        tuned("sarsa")
    with pytest.raises(ValueError, match="advantage='q' is unknown"):
        tuned("hard", "q")
    with pytest.raises(ValueError, match='advantage must be "value" with ppo'):
        tuned("ppo", "segment")
    with pytest.raises(TypeError, match="clip"):
        SMALL.replace(clip=0.1)  # Hard has none


@functools.cache
def outcome(config, iterations=2):
    """Numbers that any setting must reach: parameters after two iterations, and how much was collected."""
    trainer = make_trainer(config, make_env("mujoco"), iterations=3)
    state, metrics = jax.jit(trainer.iterate, static_argnums=1)(trainer.init(jax.random.key(0)), iterations)
    policy = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params["policy"])])
    return np.append(policy, [config.collection.steps, metrics["std"][0], policy.size])


# What a field is set to, under which changes of SMALL, which has the method named.
FAST, SEGMENT = {"learning_rate": 3e-2}, {"advantage": "segment"}
ALTERNATIVES = {
    "collection.advantage": ({}, "reward_to_go"),
    "collection.groups": ({}, 8),
    "collection.candidates": ({}, 2),
    "collection.horizon": ({}, 4),
    "collection.fork": ({}, False),
    "collection.gamma": ({}, 0.5),
    "collection.gae_lambda": ({}, 0.2),
    "optimizer.epochs": ({}, 1),
    "optimizer.minibatches": ({}, 2),
    "optimizer.learning_rate": ({}, 1e-2),
    "optimizer.anneal": ({}, False),
    "optimizer.max_grad_norm": ({}, 1e-7),
    "optimizer.target_kl": (FAST, 1e-4),
    "optimizer.limit_kl": (FAST, 1e-4),
    "optimizer.entropy_weight": ({}, 0.5),
    "optimizer.value_weight": ({}, 5.0),
    "network.hidden": ({}, (16,)),
    "network.init_log_std": ({}, 0.5),
    "network.min_log_std": ({"init_log_std": 0.2}, 0.2),
    "network.squash": ({"init_log_std": 1.0}, True),
    "grpo.clip": (FAST, 0.01),
    "grpo.clip_high": (FAST, 0.01),
    "grpo.level": (SEGMENT, "sequence"),
    "grpo.baseline": ({}, "leave_one_out"),
    "grpo.scale": ({}, "none"),
    "rank.clip": (FAST, 0.01),
    "rank.clip_high": (FAST, 0.01),
    "rank.level": (SEGMENT, "sequence"),
    "ppo.clip": (FAST, 0.01),
    "ppo.clip_high": (FAST, 0.01),
    "soft.clip": (FAST, 0.01),
    "soft.clip_high": (FAST, 0.01),
    "soft.level": (SEGMENT, "sequence"),
    "soft.scheme": ({}, "best_worst"),
    "soft.margin": ({}, 2.0),
    "soft.beta": ({}, 5.0),
    "hard.scheme": ({}, "best_worst"),
    "hard.margin": ({}, 2.0),
    "hard.beta": (FAST, 0.0),
    "hard.alpha": ({"beta": 0.0}, 50.0),
    "hard.delta_0": ({}, 0.02),
    "hard.delta_gamma": ({}, 0.5),
    "hard.fit": ({}, "forward"),
    "hard.trust_region": ({"beta": 1e-6, "alpha": 0.5, "hinge": "candidates"}, "lagrangian"),
    "hard.hinge": ({"beta": 0.0}, "candidates"),
    "hard.project_target": ({}, True),
    "hard.length_normalize": (SEGMENT, True),
}
# All candidates have as many steps, so these means are one; tests/lm/test_alignment.py has sequences of many lengths.
SAME = {f"{name}.aggregate" for name in ("grpo", "rank", "soft", "hard")}
# Of the surrogate that language models have too: the same file shows that these act in every method.
SHARED = {f"{name}.{field}" for name in ("grpo", "rank", "soft") for field in ("dual_clip", "policy_loss")}
SHARED |= {"ppo.dual_clip"}


def names(prefix, settings):
    return {f"{prefix}.{field.name}" for field in dataclasses.fields(settings)}


def test_every_setting_is_in_the_list():
    parts = set().union(*(names(prefix, part) for prefix, part in (PARTS | ONLINE).items()))
    assert set(ALTERNATIVES) | SAME | SHARED == parts and not set(ALTERNATIVES) & (SAME | SHARED)
    assert {field.name for field in dataclasses.fields(ControlConfig)} == {"method", *PARTS}


@pytest.mark.parametrize("name", ONLINE)
def test_no_name_belongs_to_two_parts(name):
    """`replace` finds a field by its name alone."""
    fields = [f.name for part in (*PARTS.values(), ONLINE[name]) for f in dataclasses.fields(part)]
    assert len(fields) == len(set(fields)) and not {"method", *PARTS} & set(fields)


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_a_setting_is_replaced_where_it_belongs(name):
    part, field = name.split(".")
    base, value = ALTERNATIVES[name]
    config = small(part if part in ONLINE else "hard", **base)
    changed = config.replace(**{field: value})
    where = "method" if part in ONLINE else part
    assert getattr(getattr(changed, where), field) == value != getattr(getattr(config, where), field)
    assert changed == dataclasses.replace(
        config, **{where: dataclasses.replace(getattr(config, where), **{field: value})}
    )
    assert config.has(field) and not config.has("nose")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_every_setting_changes_something(name):
    part, field = name.split(".")
    base, value = ALTERNATIVES[name]
    config = small(part if part in ONLINE else "hard", **base)
    before, after = outcome(config), outcome(config.replace(**{field: value}))
    assert before.shape != after.shape or np.abs(before - after).max() > 1e-7


@pytest.mark.slow
def test_every_method_ends_elsewhere():
    ends = [outcome(small(name)) for name in ONLINE]
    for i, one in enumerate(ends):
        assert all(np.abs(one - other).max() > 1e-7 for other in ends[:i])


def test_the_learning_rate_reaches_zero_at_the_end_of_the_budget():
    optimizer = make_optimizer(SMALL.optimizer, iterations=3)
    params = {"w": np.ones(2, np.float32)}
    state = optimizer.init(params)
    for update in range(3 * SMALL.optimizer.epochs * SMALL.optimizer.minibatches + 1):
        updates, state = optimizer.update(params, state)
        assert (np.abs(updates["w"]).max() > 0) == (update < 24)
    assert np.abs(updates["w"]).max() == 0
