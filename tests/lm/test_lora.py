"""Adapters: start as nothing, train alone, merge exactly, drop out on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.quantized import quantized

from .conftest import tiny_model

TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 97, (2, 9)))


def adapted(model, **options):
    config = lora.LoraConfig(**options)
    adapters = lora.init(config, model.config, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), adapters)
    return config, adapters, noisy


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_merge_equals_running_with_adapters(family, tmp_path):
    model = tiny_model(family)
    targets = tuple(t for t in lora.TARGETS if t not in ("gate", "lm_head") or family == "llama")
    config, fresh, noisy = adapted(model, targets=targets, rank=3, alpha=5.0)
    base = model.apply(model.params, TOKENS)
    unchanged = model.apply(model.params, TOKENS, lora=lora.variables(config, fresh))
    np.testing.assert_array_equal(base, unchanged)
    live = model.apply(model.params, TOKENS, lora=lora.variables(config, noisy))
    assert float(jnp.abs(live - base).max()) > 0.05
    merged = lora.merge(config, model.params, noisy)
    np.testing.assert_allclose(model.apply(merged, TOKENS), live, atol=1e-4)
    save_pretrained(model, merged, tmp_path)
    again = load_model(tmp_path)
    np.testing.assert_allclose(again.apply(again.params, TOKENS), live, atol=1e-4)


def test_only_targets_are_adapted_and_alpha_scales(tiny):
    config, fresh, noisy = adapted(tiny, targets=("q", "down"), rank=2)
    assert set(fresh["layers"]["attn"]) == {"q"} and set(fresh["layers"]["mlp"]) == {"down"}
    assert fresh["layers"]["attn"]["q"]["a"].shape == (3, 64, 2)
    kernel = tiny.params["layers"]["attn"]["q"]["kernel"]
    update = lora.merge(config, tiny.params, noisy)["layers"]["attn"]["q"]["kernel"] - kernel
    double = lora.LoraConfig(rank=2, alpha=32.0, targets=config.targets)
    twice = lora.merge(double, tiny.params, noisy)["layers"]["attn"]["q"]["kernel"] - kernel
    np.testing.assert_allclose(twice, 2 * update, atol=1e-6)


def test_adapters_in_half_precision_are_those_of_float32_rounded(tiny):
    """`jax.random.normal` draws bfloat16 from 128 values, whose mean is -0.012."""
    config = lora.LoraConfig(rank=4)
    half, single = (lora.init(config, tiny.config, jax.random.key(0), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), half, single)


def test_dropout_needs_a_key_and_is_unbiased(tiny):
    config, _, noisy = adapted(tiny, dropout=0.5)
    variables = lora.variables(config, noisy)
    plain = tiny.apply(tiny.params, TOKENS, lora=variables)
    calm = lora.LoraConfig(dropout=0.0)
    np.testing.assert_array_equal(plain, tiny.apply(tiny.params, TOKENS, lora=lora.variables(calm, noisy)))
    dropped = [tiny.apply(tiny.params, TOKENS, lora=variables, dropout_key=jax.random.key(i)) for i in range(2)]
    assert not np.allclose(dropped[0], plain) and not np.allclose(dropped[0], dropped[1])


def test_a_step_on_adapters_lowers_the_loss(tiny):
    config, fresh, _ = adapted(tiny, targets=lora.TARGETS[:-1])

    def loss(adapters):
        logits = tiny.apply(tiny.params, TOKENS, lora=lora.variables(config, adapters))
        log_probs = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_probs, TOKENS[:, 1:, None], -1).mean()

    step = jax.jit(lambda x: jax.tree.map(lambda w, g: w - 0.5 * g, x, jax.grad(loss)(x)))
    before = loss(fresh)
    for _ in range(5):
        fresh = step(fresh)
    assert loss(fresh) < before - 0.05


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_are_neither_merged_nor_saved(tiny, tmp_path, kind):
    config, adapters, _ = adapted(tiny)
    codes = quantized(tiny.params, kind)
    for use in (lambda: lora.merge(config, codes, adapters), lambda: save_pretrained(tiny, codes, tmp_path / "out")):
        with pytest.raises(ValueError, match=rf"params: {kind} codes; pass dequantized\(params\)"):
            use()
    assert not (tmp_path / "out").exists()


def test_bad_configs_are_refused(tiny):
    for options, match in [
        ({"rank": 0}, "rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"targets": ("query",)}, "targets"),
        ({"targets": ()}, "targets"),
    ]:
        with pytest.raises(ValueError, match=match):
            adapted(tiny, **options)
