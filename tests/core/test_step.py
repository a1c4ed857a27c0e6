"""The step that respects a trust region, against a case with a known answer."""

import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.core.step import interpolate, largest_step, limit_step

OLD, NEW = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}, {"x": jnp.array([5.0, -2.0]), "y": jnp.array(4.0)}


def distance(params):
    """Squared distance from `OLD`: 33 at `NEW`, 33 f^2 on the way."""
    return sum(jnp.sum((params[name] - OLD[name]) ** 2) for name in OLD)


def test_interpolation_is_between_parameters_that_are_not_zero():
    between = interpolate(OLD, NEW, 0.25)
    np.testing.assert_allclose(between["x"], [2.0, 1.0])
    np.testing.assert_allclose(between["y"], 3.25)


def test_nothing_of_a_step_of_fraction_0_is_kept():
    kept = limit_step(distance, OLD, {"x": jnp.array([jnp.nan, 1e30]), "y": jnp.array(jnp.inf)}, 1.0)
    assert kept["x"].tolist() == OLD["x"].tolist() and kept["y"] == OLD["y"]


@pytest.mark.parametrize("share", [0.1, 0.37, 0.81])
def test_the_largest_step_is_found_to_the_bisections_asked_for(share):
    radius = 33 * share**2
    for iterations, options in ((12, {}), (3, {"iterations": 3})):  # the default is 12
        fraction = largest_step(distance, OLD, NEW, radius, **options)
        assert share - 2.0**-iterations <= fraction <= share
        assert fraction * 2**iterations == np.floor(share * 2**iterations)
        limited = limit_step(distance, OLD, NEW, radius, **options)
        np.testing.assert_allclose(limited["x"], interpolate(OLD, NEW, fraction)["x"], atol=1e-6)
    assert distance(limit_step(distance, OLD, NEW, radius)) <= radius
    assert largest_step(distance, OLD, NEW, 34.0) == 1
