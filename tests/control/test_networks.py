"""The Gaussian policy's standard deviation: its floor, and the way back from below it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pairgrpo_jax.control.networks import GaussianPolicy, at_least

X = jnp.array([-7.0, -5.5, -5.0, -4.9, 0.0, 2.0])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_floor_stops_only_what_would_sink_further(sign):
    """Bit for bit `jnp.maximum` above the floor."""
    slope = sign * jnp.linspace(0.1, 0.7, 6)
    value, pull = jax.jit(lambda x: jax.vjp(lambda y: at_least(y, -5.0), x))(X)
    plain, plain_pull = jax.vjp(lambda y: jnp.maximum(y, -5.0), X)
    np.testing.assert_array_equal(value, plain)
    np.testing.assert_array_equal(pull(slope)[0][3:], plain_pull(slope)[0][3:])
    np.testing.assert_array_equal(pull(slope)[0][:2], slope[:2] if sign < 0 else [0, 0])


def test_a_policy_comes_back_from_below_its_floor():
    policy = GaussianPolicy((4,), 2, init_log_std=-1.0, min_log_std=-2.0)
    params = policy.init(jax.random.key(0), jnp.zeros((1, 3)))
    params["params"]["log_std"] = jnp.full(2, -2.5)
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)

    def loss(params):
        return jnp.square(policy.apply(params, jnp.zeros((1, 3)))[1] + 1.0).sum()

    for _ in range(60):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["params"]["log_std"], -1.0, atol=0.1)
