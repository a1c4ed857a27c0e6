"""Every field of a config has an effect, and both spellings of rope are read alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm.files.exported import exported_fields
from pairgrpo_jax.lm.models.config import ModelConfig, RopeConfig
from pairgrpo_jax.lm.models.decoder import Decoder, run
from pairgrpo_jax.lm.models.model import Model, read_config
from pairgrpo_jax.lm.models.params import abstract_params, init_params
from pairgrpo_jax.lm.models.rope import frequencies

from .conftest import config_fields

BASE = ModelConfig(
    family="test",
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    windows=(0, 3),
    rope=RopeConfig(100.0),
)
# Fields that change the parameters are told by shapes, the others by logits.
CHANGES = {
    "vocab_size": 33,
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_layers": 3,
    "num_heads": 2,
    "num_kv_heads": 4,
    "head_dim": 4,
    "windows": (3, 0),
    "rope": RopeConfig(50.0),
    "local_rope": RopeConfig(10.0),
    "nope_layers": (0,),
    "activation": "relu",
    "norm": "rms_plus_one",
    "norm_eps": 1e-2,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "gated": False,
    "qk_norm": "head",
    "pre_norms": False,
    "post_norms": True,
    "tied": True,
    "embed_scale": 2.0,
    "attention_scales": (0.1, 0.1),
    "attention_softcap": 0.5,
    "logit_softcap": 0.5,
}
# Read by loading and generation: tested there.
ELSEWHERE = {"family", "max_positions", "bos_id", "eos_ids", "reply_end", "pad_id"}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (1, 8)))


def logits(config, params):
    positions = jnp.arange(8)[None]
    return run(Decoder(config), params, TOKENS, positions)[0]


def test_the_list_is_complete():
    names = {f.name for f in dataclasses.fields(ModelConfig)}
    assert names == CHANGES.keys() | ELSEWHERE


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, init_params(BASE, jax.random.key(0)))


@pytest.fixture(scope="module")
def base(params):
    return logits(BASE, params)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_has_an_effect(name, params, base):
    config = dataclasses.replace(BASE, **{name: CHANGES[name]})
    if name == "num_layers":
        config = dataclasses.replace(config, windows=(0, 3, 0))
    shapes = [jax.tree.map(lambda x: x.shape, abstract_params(c)) for c in (BASE, config)]
    if shapes[0] == shapes[1]:
        assert float(jnp.abs(logits(config, params) - base).max()) > 1e-3


ROPES = [
    RopeConfig(100.0),
    RopeConfig(50.0),
    RopeConfig(100.0, partial=0.5),
    RopeConfig(100.0, "linear", 2.0),
    RopeConfig(100.0, "linear", 3.0),
    RopeConfig(100.0, "dynamic", 2.0, 8),
    RopeConfig(100.0, "dynamic", 2.0, 16),
    RopeConfig(100.0, "llama3", 8.0, 32, 1.0, 4.0),
    RopeConfig(100.0, "llama3", 8.0, 32, 2.0, 4.0),
    RopeConfig(100.0, "llama3", 8.0, 32, 1.0, 8.0),
    RopeConfig(100.0, "yarn", 4.0, 32, beta_fast=8.0),
    RopeConfig(100.0, "yarn", 4.0, 32, beta_fast=2.0),
    RopeConfig(100.0, "yarn", 4.0, 32, beta_fast=8.0, beta_slow=2.0),
    RopeConfig(100.0, "yarn", 4.0, 32, beta_fast=8.0, truncate=False),
    RopeConfig(100.0, "longrope", 1.0, 32, short_factor=(1.0,) * 8, long_factor=(2.5,) * 8),
    RopeConfig(100.0, "longrope", 1.0, 99, short_factor=(1.5,) * 8, long_factor=(2.5,) * 8),
]


def test_every_rope_field_has_an_effect():
    seen = {tuple(np.asarray(frequencies(r, 16, jnp.asarray([40]))[0]).tolist()) for r in ROPES}
    assert len(seen) == len(ROPES)


def test_old_and_new_rope_spellings_are_the_same():
    fields = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = fields | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = fields | {"rope_parameters": scaling | {"rope_theta": 5e5}}
    assert read_config(old, "old") == read_config(new, "new")
    assert read_config(old, "old").rope == RopeConfig(5e5, "linear", 2.0, 2048)


@pytest.mark.parametrize(
    ("kind", "most", "context"),
    [("yarn", 32, 128), ("yarn", 256, 256), ("linear", 128, 128), ("dynamic", 32, 32), ("llama3", 64, 64)],
)
def test_a_text_may_be_as_long_as_its_rope_is_stretched(kind, most, context):
    """Yarn's config may name the unscaled maximum, as Qwen2.5's card says; those of linear name the scaled one."""
    rope = RopeConfig(kind=kind, factor=4.0, original_max=32)
    assert dataclasses.replace(BASE, max_positions=most, rope=rope).context == context


def test_a_linear_rope_may_name_the_scaled_maximum_beside_the_unscaled_one():
    """Vicuna's 16k files: 4096 and 16384. Other ropes' contexts do not depend on that field."""
    fields = config_fields("llama") | {"max_position_embeddings": 4096, "max_sequence_length": 16384}
    assert read_config(fields, "config.json").context == 4096
    for longest in (16384, 2048, None):
        linear = fields | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
        read = read_config(linear | {"max_sequence_length": longest}, "config.json")
        assert read.context == max(longest or 0, 4096)


@pytest.mark.parametrize("spelling", [{"type": "su"}, {"rope_type": "su"}, {"type": "su", "rope_type": "su"}])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_su_is_the_older_name_of_longrope(name, spelling):
    """`transformers` (5.23.0) renames it after a look for longrope's fields, and refuses: the oracle is longrope."""
    from transformers import AutoConfig

    fields = config_fields("phi3", 2) | {"rope_theta": 1e4}
    factors = fields.pop("rope_scaling")
    scaling = {k: factors[k] for k in ("short_factor", "long_factor")}
    want = read_config(fields | {"rope_scaling": scaling | {"type": "longrope"}}, "config.json")
    given = fields | {name: scaling | spelling}
    assert read_config(given, "config.json") == want and want.rope.kind == "longrope"
    exported = exported_fields(Model(want, None, hf_config=given), "float32")
    assert "su" not in str(exported)
    assert read_config(exported, "config.json") == want
    exported.pop("model_type")
    assert AutoConfig.for_model("phi3", **exported).rope_parameters["rope_type"] == "longrope"


def test_parameters_and_activations_have_their_own_dtype(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    hidden, kv = run(Decoder(BASE, jnp.bfloat16), params, TOKENS, jnp.arange(8)[None], method="hidden")
    assert hidden.dtype == kv.k.dtype == jnp.bfloat16
    assert run(Decoder(BASE), half, TOKENS, jnp.arange(8)[None])[0].dtype == jnp.float32


def test_remat_changes_memory_only(params):
    def loss(params, remat):
        out, _ = run(Decoder(BASE, remat=remat), params, TOKENS, jnp.arange(8)[None])
        return jnp.square(out).mean()

    grads = [jax.jit(jax.grad(loss), static_argnums=1)(params, remat) for remat in (False, True)]
    for a, b in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(a).max() + 1))
    long = dataclasses.replace(BASE, num_layers=24, windows=(0,) * 24)
    abstract = abstract_params(long)

    def peak(remat):
        def loss(params, tokens):
            positions = jnp.broadcast_to(jnp.arange(64), tokens.shape)
            return jnp.square(run(Decoder(long, remat=remat), params, tokens, positions)[0]).mean()

        tokens = jax.ShapeDtypeStruct((4, 64), jnp.int32)
        compiled = jax.jit(jax.grad(loss)).lower(abstract, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(True) < 0.5 * peak(False)


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        config = dataclasses.replace(BASE, num_layers=layers, windows=(0,) * layers)
        shape = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        f = lambda p, t: run(Decoder(config), p, t, t)[0]  # noqa: E731
        return len(jax.jit(f).lower(abstract_params(config), shape).as_text())

    assert size(40) < 1.2 * size(2)


def test_a_model_shows_what_it_is_made_of_and_not_its_numbers():
    shown = repr(Model(BASE, init_params(BASE, jax.random.key(0))))
    assert "num_layers=2" in shown and "Array" not in shown
