"""Theory is checked in float64, switched on for these tests alone."""

import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield
