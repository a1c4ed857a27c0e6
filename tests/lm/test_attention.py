"""Every form of attention is the plain one, with its gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from pairgrpo_jax.lm import Policy, score
from pairgrpo_jax.lm.models import attention, blockwise, kernels
from pairgrpo_jax.lm.models.attention import attend, plain
from pairgrpo_jax.lm.models.places import KV

from .conftest import tiny_model

KEY = jax.random.key(0)
T, P, D = 11, 7, 8


def text(rows: int, heads: int, steps: int, lengths, start: Any = 0, left=False, dtype=jnp.float32):
    """Random keys and values of `rows` texts, padded, that begin at position `start`."""
    k, v = jax.random.normal(jax.random.fold_in(KEY, steps * heads + rows), (2, rows, heads, steps, D), dtype)
    slots, lengths = jnp.arange(steps), jnp.asarray(lengths)[:, None]
    at = slots - (steps - lengths) if left else slots
    return KV(k, v, jnp.where((at >= 0) & (at < lengths), at + jnp.asarray(start).reshape(-1, 1), -1))


def cases():
    """Name -> (query heads, places, options of `attend`)."""
    left, prompt = text(2, 2, T, [T, 5], left=True), text(2, 2, P, [P, 3])
    shared = [prompt, text(6, 2, T, [T, 1, 4, 9, T, 2], start=np.repeat([P, 3], 3))]
    cached = [prompt, text(6, 2, 5, [5] * 6, start=np.repeat([P, 3], 3)), text(6, 2, T, [T] * 6, np.repeat([12, 8], 3))]
    return {
        "grouped heads, padded on the left": (4, [left], {}),
        "window": (2, [text(2, 2, T, [T, 5])], {"window": 3}),
        "shared prompt, window, soft cap": (2, shared, {"window": 4, "softcap": 3.0}),
        "shared prompt, soft cap, a cache": (4, cached, {"softcap": 2.0}),
    }


def compare(form, heads: int, places: list[KV], tolerance=1e-5, **options):
    """The output and its gradients of real rows beside those of `plain`."""
    own = places[-1]
    q = jax.random.normal(jax.random.fold_in(KEY, 1), (len(own.k), heads, own.k.shape[2], D))
    real = own.positions[:, None, :, None] >= 0

    def loss(f, q, pairs, scale):
        kvs = [KV(k, v, kv.positions) for (k, v), kv in zip(pairs, places)]
        out = jnp.where(real, f(q, kvs, own.positions, scale=scale, **options), 0)
        return jnp.sum(jnp.sin(out) * jnp.arange(1, 1 + out.shape[2])[:, None]), out

    def both(f):
        run = jax.value_and_grad(functools.partial(loss, f), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(run)(q, [(kv.k, kv.v) for kv in places], jnp.float32(0.3))

    ours, theirs = both(form), both(plain)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, abs(b).max())), *(ours, theirs)
    )


@pytest.mark.parametrize("name", cases())
def test_blocks_of_keys_equal_plain_attention(name, monkeypatch):
    monkeypatch.setattr(attention, "LONG", 1)
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    heads, places, options = cases()[name]
    compare(attend, heads, places, **options)


@pytest.mark.parametrize("name", ["grouped heads, padded on the left", "shared prompt, soft cap, a cache"])
def test_splash_attention_equals_plain_attention(name):
    heads, places, options = cases()[name]

    def splash(q, places, positions, *, scale, softcap=0.0):
        return kernels.splash(q, places, scale, softcap, interpret=True)

    compare(splash, heads, places, **options)


def test_what_cudnn_is_asked_equals_plain_attention():
    """Its own arithmetic needs a card; `jax.nn.dot_product_attention` computes the same request in XLA."""
    heads, places, options = cases()["grouped heads, padded on the left"]

    def asked(q, places, positions, *, scale):
        return kernels.cudnn(q, places, scale, implementation="xla")

    compare(asked, heads, places, **options)


def test_a_model_scores_long_texts_as_short_ones(monkeypatch):
    """Gemma 2 has both soft caps, and windows in every other layer, which its layers are scanned over."""
    model = tiny_model("gemma2")
    prompts, completions = jnp.arange(3, 17).reshape(2, 7), jnp.arange(5, 41).reshape(2, 3, 6)
    lengths = jnp.asarray([4, 7]), jnp.asarray([[5, 1, 6], [2, 6, 3]])

    def logp(params):
        return score(Policy(model, params), prompts, lengths[0], completions, lengths[1]).logp

    short = jax.jit(logp)(model.params)
    monkeypatch.setattr(attention, "LONG", 1)
    np.testing.assert_allclose(jax.jit(lambda params: logp(params))(model.params), short, atol=2e-5)


def lowered(platform: str, dtype, places: int, steps: int, **options) -> str:
    """The program of attention and its gradients for a platform that need not be here."""
    rows, devices = 8, 1 if platform == "cuda" else jax.device_count()  # cuDNN's call is split when it is compiled
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:devices]}
    mesh = jax.make_mesh((devices,), ("fsdp",), **axes)
    shape = jax.ShapeDtypeStruct((rows, 2, steps, 16), dtype)
    at = jax.ShapeDtypeStruct((rows, steps), jnp.int32)

    def loss(q, k, v, at):
        out = attend(q, [KV(k, v, at)] * places, at, scale=0.25, mesh=mesh, **options)
        return out.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(shape, shape, shape, at)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_no_platform_holds_the_scores_of_a_long_text(platform):
    text = lowered(platform, jnp.bfloat16, 2, 2048)
    assert "2048x2048" not in text and "2048x4096" not in text
    assert text.count("tpu_custom_call") == (4 if platform == "tpu" else 0)  # forward, again, and two backward


def test_cudnn_is_chosen_where_it_is_and_computes_this(monkeypatch):
    assert "__cudnn" not in lowered("cuda", jnp.bfloat16, 1, 512)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    assert "__cudnn$fmhaSoftmaxBackward" in lowered("cuda", jnp.bfloat16, 1, 512, window=512)
    assert "__cudnn" not in lowered("cuda", jnp.float32, 1, 512)
    assert "__cudnn" not in lowered("cuda", jnp.bfloat16, 2, 512)
    assert "__cudnn" not in lowered("cuda", jnp.bfloat16, 1, 512, window=511)
    assert "__cudnn" not in lowered("cuda", jnp.bfloat16, 1, 512, softcap=5.0)
    assert "__cudnn" not in lowered("cpu", jnp.bfloat16, 1, 512)
