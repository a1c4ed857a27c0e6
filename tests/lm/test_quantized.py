"""A frozen base as codes: against float64 definitions, against its own numbers, and against the float base."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.models import lora, sharding
from pairgrpo_jax.lm.models.model import read_config
from pairgrpo_jax.lm.models.params import abstract_params, init_params
from pairgrpo_jax.lm.models.quantized import NF4, dense, dequantized, encoded, is_coded, kind_of, quantized
from pairgrpo_jax.training.cost import bytes_on_a_device

from .conftest import config_fields, tiny_model

SMOLLM2 = {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
SMOLLM2 |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
QWEN_05B = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864}
QWEN_05B |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
LLAMA_7B = {"model_type": "llama"}
ENOUGH = {"int8": 0.99, "q8_0": 0.99, "nf4": 0.97}


def test_the_levels_are_those_of_the_paper_s_construction():
    """As bitsandbytes' `create_normal_map`: quantiles of a normal distribution, 8 above and 7 below an exact zero."""
    end = 0.9677083  # 1 - (1/30 + 1/32) / 2
    above, below = norm.ppf(np.linspace(end, 0.5, 9)[:-1]), -norm.ppf(np.linspace(end, 0.5, 8)[:-1])
    levels = np.sort([*above, 0.0, *below]) / norm.ppf(end)
    np.testing.assert_allclose(NF4, levels, atol=1e-6)


@pytest.mark.parametrize("width", [64, 192, 40, 100, 97])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_codes_and_scales_are_those_of_float64(kind, width):
    x = np.random.default_rng(width).normal(size=(2, width, 6)).astype(np.float32)
    x[0, :, 3], x[1, 0, 5] = 0.0, 40.0  # an output that is not used, and an outlier
    block = {64: 64, 192: 64, 40: 40, 100: 50, 97: 97}[width] if kind == "nf4" else width
    blocks = x.astype(np.float64).reshape(2, -1, block, 6)
    scale = np.abs(blocks).max(2, keepdims=True) / (127 if kind == "int8" else 1)
    scale[scale == 0] = 1
    parts = blocks / scale
    levels = np.arange(-127, 128) if kind == "int8" else NF4.astype(np.float64)
    far = np.abs(parts[..., None] - levels)

    held = quantized({"layers": {"up": {"kernel": jnp.asarray(x)}}}, kind)["layers"]["up"]["kernel"]
    np.testing.assert_allclose(
        np.asarray(held.scale, np.float64), scale[:, :, 0], rtol=1e-6 if kind == "int8" else 2**-8
    )
    codes = np.asarray(held.codes, np.int32).reshape(parts.shape)
    index = codes + 127 if kind == "int8" else codes
    # The nearest level; between two that are equally near either will do.
    np.testing.assert_allclose(np.take_along_axis(far, index[..., None], -1)[..., 0], far.min(-1), atol=1e-5)
    want = (levels[index] * np.asarray(held.scale, np.float64)[:, :, None]).reshape(x.shape)
    np.testing.assert_allclose(dense(held, jnp.float32), want, rtol=1e-6)
    assert np.abs(want - x).max() <= (0.5001 if kind == "int8" else 0.16) * scale.max()


def test_nf4_codes_are_those_of_qwix():
    qwix = pytest.importorskip("qwix", reason="the oracle of codes (extra: parity)")
    x = jax.random.normal(jax.random.key(0), (128, 32))
    held = quantized({"layers": {"up": {"kernel": x}}}, "nf4")["layers"]["up"]["kernel"]
    want = qwix.quantize(x, "nf4", channelwise_axes=(1,), tiled_axes={0: 64}, scale_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(held.codes, want.qvalue)
    np.testing.assert_array_equal(held.scale, want.scale)


@pytest.mark.parametrize(
    ("path", "shape"), [("embed", (6, 96)), ("layers/up/kernel", (2, 96, 6)), ("lm_head/kernel", (96, 6))]
)
def test_q8_0_is_what_gguf_holds(path, shape):
    axis = -1 if path == "embed" else -2
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 0.02
    stored = np.ascontiguousarray(np.moveaxis(x, axis, -1))  # GGUF has the inputs of a product last
    stored.flat[:32] = 0.0
    kind = gguf.GGMLQuantizationType.Q8_0
    raw = gguf.quants.quantize(stored, kind)
    numbers = np.moveaxis(gguf.quants.dequantize(raw, kind), -1, axis)
    held = encoded(path, jnp.asarray(numbers), "q8_0")
    blocks = raw.reshape(-1, 34)
    codes = np.moveaxis(np.asarray(held.codes), axis, -1).reshape(-1, 32)
    np.testing.assert_array_equal(codes, blocks[:, 2:].view(np.int8))
    scale = np.moveaxis(np.asarray(held.scale), axis, -1).reshape(-1)
    np.testing.assert_array_equal(scale[1:], blocks[1:, :2].copy().view(np.float16).ravel())
    np.testing.assert_array_equal(dense(held, jnp.float32), numbers)


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.30), ("q8_0", 0.27), ("nf4", 0.17)])
@pytest.mark.parametrize("fields", [SMOLLM2, QWEN_05B, LLAMA_7B], ids=["smollm2", "qwen2.5-0.5b", "llama-7b"])
def test_bytes_of_the_base(fields, kind, most):
    abstract = abstract_params(read_config(fields, "config.json"))
    held = jax.eval_shape(lambda x: quantized(x, kind), abstract)
    assert bytes_on_a_device(held) <= most * bytes_on_a_device(abstract)
    whole = jax.tree.leaves(held, is_leaf=is_coded)
    assert {x.ndim for x in whole if not is_coded(x)} <= {1, 2} and kind_of(held) == kind  # norms and biases


def test_logits_and_gradients_of_adapters():
    """The codes' own program against that of numbers, on a tied model; nf4 has int8 too."""
    model = tiny_model("llama", 2)
    params = init_params(model.config, jax.random.key(0))
    config = lora.LoraConfig(rank=4, targets=("q", "down"))
    adapters = lora.init(config, model.config, jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 97, (2, 9)))

    @jax.jit
    def run(params):
        def loss(adapters):
            logits = model.apply(params, tokens, lora=lora.variables(config, adapters))
            logp = jax.nn.log_softmax(logits[:, :-1])
            return jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean(), logits

        grads, logits = jax.grad(loss, has_aux=True)(adapters)
        return logits, jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)])

    codes = jax.jit(lambda x: {kind: quantized(x, kind) for kind in ENOUGH})(params)
    original, numbers = run(params), {kind: run(dequantized(x)) for kind, x in codes.items()}
    for kind in ("q8_0", "nf4"):
        for one, other in zip(run(codes[kind]), numbers[kind]):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for kind, (logits, grads) in numbers.items():
        assert float(jnp.abs(logits - original[0]).max()) > 1e-4, "nothing was quantised"
        cosine = grads @ original[1] / jnp.linalg.norm(grads) / jnp.linalg.norm(original[1])
        assert cosine >= ENOUGH[kind]


def test_a_folder_is_read_into_codes(tiny, tmp_path):
    save_pretrained(tiny, tiny.params, tmp_path)
    got, want = load_model(tmp_path, quantize="nf4").params, quantized(tiny.params, "nf4")
    assert jax.tree.structure(got) == jax.tree.structure(want) and kind_of(got) == "nf4"
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_codes_and_their_scales_are_split_alike():
    abstract = abstract_params(read_config(config_fields("llama"), "config.json"))
    held = jax.eval_shape(lambda x: quantized(x, "nf4"), abstract)
    specs = sharding.specs(held, {"fsdp": 2, "tensor": 2})
    up, down = (specs["layers"]["mlp"][name]["kernel"] for name in ("up", "down"))
    assert tuple(up.codes) == (None, "fsdp", "tensor") and tuple(up.scale) == (None, None, "tensor")  # one block of 64
    assert tuple(down.codes) == (None, "tensor", "fsdp") and tuple(down.scale) == (None, "tensor", "fsdp")  # two of 48


def test_what_cannot_be_is_named(tiny):
    codes = quantized(tiny.params, "int8")
    assert quantized(codes, "int8") is codes and quantized(tiny.params, "none") is tiny.params
    with pytest.raises(ValueError, match="quantize='int4' must be one of none, int8, q8_0, nf4"):
        quantized(tiny.params, "int4")
    for kind in ("nf4", "none"):
        with pytest.raises(ValueError, match=f"quantize='{kind}': the parameters are int8 codes already"):
            quantized(codes, kind)
