"""What the theory added to the core: margin-weighted pairs, a travel budget, a step inside the trust region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax import (
    group_advantages,
    largest_step,
    limit_step,
    pair_rewards,
    pairs_from_rewards,
    travel_schedule,
)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_margin_weighted_pair_rewards_are_grpo_advantages(size):
    rewards = jax.random.normal(jax.random.key(size), (50, size)).at[0].set(1.0)
    found = pair_rewards(pairs_from_rewards(rewards, scheme="margin_weighted"), size)
    np.testing.assert_allclose(found, group_advantages(rewards, eps=0.0), atol=1e-12)
    assert jnp.all(found[0] == 0)


def test_margin_drops_small_gaps_of_margin_weighted_pairs():
    pairs = pairs_from_rewards(jnp.array([[0.0, 0.1, 2.0]]), scheme="margin_weighted", margin=0.5)
    assert int((pairs.weight > 0).sum()) == 2


@pytest.mark.parametrize("updates,final", [(1, 0.1), (7, 0.1), (300, 0.01), (50, 1.0)])
def test_travel_schedule_spends_its_budget_and_stops(updates, final):
    schedule = travel_schedule(0.4, updates, final=final)
    deltas = jax.jit(jax.vmap(schedule))(jnp.arange(updates + 20))
    np.testing.assert_allclose(deltas.sum(), 0.4, atol=1e-12)
    assert jnp.all(deltas[updates:] == 0)
    if updates > 1:
        np.testing.assert_allclose(deltas[updates - 1] / deltas[0], final, atol=1e-12)


@pytest.mark.parametrize("bad", [{"budget": -1.0}, {"updates": 0}, {"final": 0.0}, {"final": 1.5}])
def test_travel_schedule_refuses_nonsense(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        travel_schedule(**({"budget": 0.1, "updates": 10} | bad))


def test_limit_step_lands_on_the_radius_or_takes_the_whole_step():
    old, new = {"x": jnp.zeros(3), "y": jnp.ones(2)}, {"x": jnp.full(3, 2.0), "y": jnp.ones(2)}

    def divergence(params):
        return jnp.sum(jnp.square(params["x"]))

    cut = jax.jit(lambda r: limit_step(divergence, old, new, r, iterations=30))(3.0)
    np.testing.assert_allclose(cut["x"], 1.0, atol=1e-6)
    assert divergence(cut) <= 3.0
    whole = limit_step(divergence, old, new, 100.0)
    np.testing.assert_allclose(whole["x"], new["x"])
    assert largest_step(lambda params: 1 + divergence(params), old, new, 0.5) == 0  # nothing fits: stay


def test_limit_step_returns_only_what_it_evaluated():
    def wavy(x):
        return jnp.abs(jnp.sin(3 * x)) + x

    for radius in np.linspace(0.05, 3, 20):
        assert wavy(limit_step(wavy, jnp.asarray(0.0), jnp.asarray(3.0), radius)) <= radius
