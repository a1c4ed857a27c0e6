"""Settings are what their fields say, whatever they are given as."""

import json
from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.core.bounds import AtLeast, Settings, from_values, to_values


@dataclass(frozen=True)
class Example(Settings):
    prompts: Annotated[int, AtLeast(1)] = 4
    seed: int | None = None
    delta: Annotated[float, AtLeast(0)] = 0.5
    alpha: float = 32.0
    high: Annotated[float | None, AtLeast(0)] = None


@pytest.mark.parametrize("value", [4.0, np.float32(4), 2.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["prompts", "seed"])
def test_a_float_is_no_whole_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got"):
        Example(**{name: value})


@pytest.mark.parametrize("value", [True, np.True_, "4"])
@pytest.mark.parametrize("name", ["prompts", "seed", "delta", "alpha", "high"])
def test_a_boolean_or_a_text_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number, got"):
        Example(**{name: value})


@pytest.mark.parametrize("value", [float("inf"), np.float32("inf")])
@pytest.mark.parametrize("name", ["delta", "alpha", "high"])
def test_a_float_that_is_not_finite_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite, got inf"):
        Example(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be .*, got nan"):
        Example(**{name: value * 0})


def test_numbers_of_numpy_are_settings_and_stored_as_numbers():
    given = Example(np.int64(8), np.uint8(3), np.float64(0.25), 16, np.float32(0.5))
    stored = json.loads(json.dumps(to_values(given)))
    assert stored == {"prompts": 8, "seed": 3, "delta": 0.25, "alpha": 16, "high": 0.5}
    assert from_values(Example, stored) == Example(8, 3, 0.25, 16.0, 0.5) == given
    Example(prompts=jnp.asarray(8), delta=jnp.asarray(jnp.inf))  # arrays pass, to be mapped over
