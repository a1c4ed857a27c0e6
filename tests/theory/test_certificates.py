"""The predicates against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pairgrpo_jax.theory import certificates as c


@pytest.mark.parametrize("cosine,kappa", [(0.9, 4.0), (0.5, 2.0), (0.0, 30.0)])
def test_gradient_cosine_bound_is_the_minimum(cosine, kappa):
    half = np.arccos(cosine) / 2

    def gradient_cosine(turn):  # two unit vectors at this angle, anywhere in the plane of the extreme eigenvectors
        u, v = (np.array([np.cos(turn[0] + s), np.sqrt(kappa) * np.sin(turn[0] + s)]) for s in (half, -half))
        return u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    least = min(minimize(gradient_cosine, x0=[start]).fun for start in (0.1, 0.8, 1.5))
    np.testing.assert_allclose(c.gradient_cosine_bound(jnp.asarray(cosine), jnp.asarray(kappa)), least, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_no_gradient_cosine_lies_below_its_bound(seed, size):
    rng = np.random.default_rng(seed)
    u, v = (x - x.mean() for x in rng.normal(size=(2, size)))
    scores = rng.normal(size=(size, size + 2)) * rng.exponential(size=(size, 1))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    with jax.enable_x64(True):
        kappa = c.centred_condition_number(jnp.asarray(scores))
        bound = c.gradient_cosine_bound(jnp.asarray(cosine(u, v)), kappa)
    assert cosine(scores.T @ u, scores.T @ v) >= bound - 1e-9


def test_bound_knows_its_limits():
    one, inf = jnp.asarray(1.0), jnp.asarray(jnp.inf)
    assert c.gradient_cosine_bound(one, inf) == 1 and c.gradient_cosine_bound(one / 2, inf) == -1
    assert jnp.isclose(c.gradient_cosine_bound(one / 2, one), 0.5)
    assert c.gradient_cosine_bound(one / 2, one * 2.99) > 0 > c.gradient_cosine_bound(one / 2, one * 3.01)
    repeated = jnp.array([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    assert jnp.isinf(c.centred_condition_number(repeated))


def test_moves_as_asked_is_the_first_order_change():
    p, r = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
    assert [bool(x) for x in c.moves_as_asked(p, r)] == [False, True]
    assert [bool(x) for x in c.moves_as_asked(p, -r)] == [True, True]


def test_policy_improvement_bound_is_the_formula():
    assert jnp.isclose(c.policy_improvement_bound(jnp.asarray(1.0), jnp.asarray(0.1), jnp.asarray(2.0), 0.5), 0.84)
