"""The optimizer of a run: optax's own numbers in float32, and a norm that half precision does not shorten."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pairgrpo_jax.core.bounds import from_values, to_values
from pairgrpo_jax.training.optimizer import Optimizer, clipped_adam


@pytest.mark.parametrize("limit", [0.1, 100.0, np.inf])
def test_in_float32_it_is_optax(limit):
    grads = {name: jax.random.normal(jax.random.key(i), (5, 3)) for i, name in enumerate("ab")}
    ours, theirs = clipped_adam(limit, 0.1), optax.chain(optax.clip_by_global_norm(limit), optax.adam(0.1))
    states = [x.init(grads) for x in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])  # checkpoints of before are read
    for _ in range(2):
        (one, first), (other, second) = (x.update(grads, s) for x, s in zip((ours, theirs), states))
        jax.tree.map(np.testing.assert_array_equal, (one, first), (other, second))
        states = [first, second]


def test_a_norm_of_many_bfloat16_leaves_is_held():
    grads = {f"layer {i}": jnp.full(1, 0.99, jnp.bfloat16) for i in range(1000)}
    clip = clipped_adam(1.0, 0.1)
    moments = clip.update(grads, clip.init(grads))[1][1][0].mu  # 0.1 of the clipped gradient
    norm = optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32) / 0.1, moments))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(moments)) and abs(norm - 1) < 0.01


def test_no_limit_is_a_setting():
    free = Optimizer(max_grad_norm=np.inf)
    assert from_values(Optimizer, to_values(free)) == free
    for value in (np.nan, -np.inf, 0.0):
        with pytest.raises(ValueError, match="max_grad_norm must be"):
            Optimizer(max_grad_norm=value)
