"""What is live at once, of programs whose answer is known; and beside what a compiler makes of them."""

import jax
import jax.numpy as jnp
import pytest

from pairgrpo_jax.training.cost import bytes_of
from pairgrpo_jax.training.memory import live_bytes

N = 256
X = jax.ShapeDtypeStruct((N, N), jnp.float32)
ONE = 4 * N * N


def live(f, *arguments):
    return live_bytes(jax.make_jaxpr(f)(*arguments))


def test_products_are_held_until_they_are_read_and_results_are_not_counted():
    assert live(lambda x: x @ x, X) == 0
    assert live(lambda x: (x @ x) @ x, X) == ONE
    assert live(lambda x: ((x @ x) @ (x + 1)) @ (x @ x), X) == 2 * ONE


def test_what_one_reader_computes_elementwise_is_fused_and_what_two_read_is_held():
    assert live(lambda x: jnp.exp(jnp.sin(x) * 2) @ x, X) == 0
    assert live(lambda x: (jnp.sin(x @ x) + 1) @ x, X) == ONE

    def twice(x):
        y = jnp.sin(x @ x)
        return (y @ x) * jnp.cos(y)

    assert live(twice, X) == 2 * ONE  # y and y @ x; x @ x is gone


def test_a_product_that_is_only_read_in_half_precision_is_held_so():
    assert live(lambda x: (x @ x).astype(jnp.bfloat16) @ x.astype(jnp.bfloat16), X) == ONE // 2


def test_loops_hold_one_iteration_and_what_they_collect():
    def scanned(x, xs):
        return jax.lax.scan(lambda y, s: (y @ s @ s, y @ s), x, xs)

    stack = jax.ShapeDtypeStruct((5, N, N), jnp.float32)
    assert live(scanned, X, stack) == 3 * ONE  # a slice, the product, and the one that is collected
    collected = live(lambda x, xs: scanned(x, xs)[1].sum(0) @ x, X, stack)
    assert 5 * ONE <= collected <= 9 * ONE


def test_dead_code_calls_and_keys_cost_what_they_should():
    inner = jax.jit(lambda x: x @ x)

    def f(x, key):
        jax.random.normal(key, (N, N)) @ x
        return inner(inner(x)) @ x

    assert live(f, X, jax.random.key(0)) == 2 * ONE
    assert bytes_of(jax.typeof(jax.random.split(jax.random.key(0), 3))) == 24


@pytest.mark.parametrize("layers", [2, 8])
def test_a_gradient_is_near_what_the_compiler_allocates(layers):
    def loss(weights, x):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0].sum()

    traced = jax.jit(jax.grad(loss)).trace(jax.ShapeDtypeStruct((layers, N, N), jnp.float32), X)
    compiled = traced.lower().compile().memory_analysis().temp_size_in_bytes
    assert 0.6 * compiled < live_bytes(traced.jaxpr) < 1.5 * compiled
