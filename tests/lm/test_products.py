"""Products of rounded operands: their value and slopes against float64, and that no pass mixes precisions."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import Policy, generate, score
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.params import init_params
from pairgrpo_jax.lm.models.products import project
from pairgrpo_jax.lm.models.quantized import quantized

from .conftest import tiny_model

RNG = np.random.default_rng(0)
X, KERNEL, SLOPE = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((7, 12), (12, 5), (7, 5)))


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("out", [None, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_slopes_are_those_of_rounded_operands(axis, out, dtype):
    x = X.astype(dtype)
    y, pull = jax.vjp(lambda x, k: project(x, k, jnp.bfloat16, out, axis), x, KERNEL.T if axis else KERNEL)
    assert y.dtype == (out or dtype)
    of_x, of_kernel = pull(SLOPE.astype(y.dtype))
    assert (of_x.dtype, of_kernel.dtype) == (x.dtype, jnp.float32)
    narrow = {"rtol": 2**-8} if dtype == jnp.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(np.asarray(y, np.float64), rounded(X) @ rounded(KERNEL), **narrow)
    np.testing.assert_allclose(np.asarray(of_x, np.float64), rounded(SLOPE) @ rounded(KERNEL).T, **narrow)
    want = rounded(X).T @ rounded(SLOPE)
    np.testing.assert_allclose(of_kernel, want.T if axis else want, rtol=1e-5, atol=1e-5)


def test_float32_is_the_plain_product():
    np.testing.assert_array_equal(project(X, KERNEL, jnp.float32), X @ KERNEL)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.grad(lambda x, k: project(x, k, jnp.float32).sum(), (0, 1))(X, KERNEL),
        jax.grad(lambda x, k: (x @ k).sum(), (0, 1))(X, KERNEL),
    )


def objective(model):
    """The likelihood of fixed completions, of `(params, adapters)`, and its arguments."""
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 3, 8)))
    texts = tokens[:, 0, :5], jnp.array([5, 3]), tokens, jnp.array([[8, 2, 5], [1, 8, 8]])
    how = lora.LoraConfig(4, 8.0)

    def f(params, adapters):
        return score(Policy(model, params, adapters and lora.variables(how, adapters)), *texts).logp.sum()

    adapters = lora.init(how, model.config, jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapters)
    return f, (model.params, adapters)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])  # an output layer of its own; tied; with biases
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_every_product_with_parameters_has_narrow_operands_and_a_wide_sum(family, dtype):
    model = dataclasses.replace(tiny_model(family), dtype=dtype, operands=jnp.bfloat16)
    f, args = objective(model)
    text = jax.jit(jax.grad(f, (0, 1))).lower(*args).as_text()
    kinds = re.findall(r"dot_general .*?: \((tensor<\S+>), (tensor<\S+>)\) -> (tensor<\S+>)", text)
    ranks = [[x.count("x") for x in kind] for kind in kinds]
    products = [kind for kind, rank in zip(kinds, ranks) if rank == [2, 2, 2]]  # attention's have more axes
    assert len(products) > 20
    assert all([x.rpartition("x")[2] for x in kind] == ["bf16>", "bf16>", "f32>"] for kind in products), products


def test_a_model_with_rounded_operands_is_near_the_float32_one(tiny):
    tiny = dataclasses.replace(tiny, params=init_params(tiny.config, jax.random.key(0)))  # small, as before training
    narrow = dataclasses.replace(tiny, operands=jnp.bfloat16)
    assert narrow.skeleton.operands == jnp.bfloat16
    (one, args), (other, _) = (objective(model) for model in (tiny, narrow))
    (value, slopes), (near, turned) = (jax.value_and_grad(f, (0, 1))(*args) for f in (one, other))
    assert value != near
    np.testing.assert_allclose(near, value, rtol=0.01)
    for slope, turn in zip(slopes, turned):
        a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (slope, turn))
        assert a @ b > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)
    options = {"max_new_tokens": 4, "key": jax.random.key(0), "temperature": 0.0}
    texts = [generate(model, model.params, [[1, 2, 3]], **options) for model in (tiny, narrow)]
    np.testing.assert_allclose(texts[1].logp, texts[0].logp, rtol=0.05, atol=0.05)


def test_codes_are_rounded_too(tiny):
    codes = quantized(tiny.params, "int8")["layers"]["mlp"]["up"]["kernel"]
    codes = jax.tree.map(lambda x: x[0], codes)
    x = jnp.asarray(RNG.normal(size=(3, codes.codes.shape[0])), jnp.float32)
    want = rounded(x) @ rounded(codes.codes * codes.scale.reshape(1, -1))
    np.testing.assert_allclose(project(x, codes, jnp.bfloat16), want, rtol=1e-5, atol=1e-5)
