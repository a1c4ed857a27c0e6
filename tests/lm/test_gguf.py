"""GGUF files of every supported family, written with llama.cpp's conventions, load as they were."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import load_model
from pairgrpo_jax.lm.files.tokenizer import encode, from_gguf
from pairgrpo_jax.lm.files.weights import stored_tensors
from pairgrpo_jax.lm.models.model import FAMILIES

from .conftest import tiny_model

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def permute(x, heads):
    """As llama.cpp's convert_hf_to_gguf.py does."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(model, path, token_ids=(), vocabulary=None, **extra):
    """Writes a model of ours as a GGUF file; `vocabulary` adds the fields of its tokenizer."""
    config = model.config
    arch = ARCHITECTURES[config.family]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, name)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    if any(config.windows):
        writer.add_sliding_window(max(config.windows))
    if vocabulary is not None:
        vocabulary(writer)
    for key, value in extra.items():
        writer.add_key_value(f"{name}.{key}", value, gguf.GGUFValueType.FLOAT32)
    for key, value in dict(token_ids).items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
    table = gguf.get_tensor_name_map(arch, config.num_layers)
    names = FAMILIES[config.family].tensor_names(config)
    for theirs, (_, make) in stored_tensors(names, model.params).items():
        x = np.asarray(make())
        if name == "llama" and ("q_proj" in theirs or "k_proj" in theirs):
            x = permute(x, config.num_heads if "q_proj" in theirs else config.num_kv_heads)
        if name.startswith("gemma") and theirs.endswith("norm.weight"):
            x = x + 1
        writer.add_tensor(table.get_name(theirs, try_suffixes=(".weight", ".bias")), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("family", "index"),
    [("llama", 0), ("qwen2", 0), ("qwen3", 0), ("gemma2", 0), ("gemma3_text", 1)],
)
def test_every_family_loads_as_written(family, index, tmp_path):
    import dataclasses

    model = tiny_model(family, index)
    caps = {}
    if family == "gemma2":
        caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if family == "gemma3_text":
        caps = {"final_logit_softcapping": 3.0}
    path = tmp_path / "model.gguf"
    write(model, path, **caps)
    loaded = load_model(path)
    for (name, a), b in zip(jax.tree_util.tree_leaves_with_path(loaded.params), jax.tree.leaves(model.params)):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=str(name))
    # Gemma's query scalar is not in the file: llama.cpp takes the head size, and so do we.
    scales = (model.config.head_dim**-0.5,) * 3 if family.startswith("gemma") else ()
    ids = {"bos_id": None, "eos_ids": (), "pad_id": None}
    want = dataclasses.replace(model.config, attention_scales=scales, **ids)
    got = dataclasses.replace(loaded.config, norm_eps=want.norm_eps, **ids)
    assert got == want


@pytest.mark.parametrize(("field", "value"), [("rope.scaling.attn_factor", 0.5), ("rope.scaling.factor", 4.0)])
def test_a_rope_field_without_effect_is_refused(tmp_path, field, value):
    write(tiny_model("llama", 0), tmp_path / "model.gguf", **{field: value})
    with pytest.raises(ValueError, match=f"field 'llama.{field}'"):
        load_model(tmp_path / "model.gguf")


def test_llama3_rope_factors_are_applied(tmp_path):
    plain = tiny_model("llama", 0)
    path = tmp_path / "model.gguf"
    write(plain, path)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "factors.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.asarray(tensor.data))
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rope = load_model(tmp_path / "factors.gguf").config.rope
    from pairgrpo_jax.lm.models.rope import frequencies

    want = 500.0 ** (-np.arange(0, 16, 2) / 16) / np.linspace(1, 8, 8)
    np.testing.assert_allclose(frequencies(rope, 16, jnp.asarray([9]))[0], want, rtol=1e-5)


BYTES = ["a", "b", "1", "2", "Ġ", "ab", "12", "Ġa", "<s>", "!"]
FIELDS = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": BYTES,
    "tokenizer.ggml.merges": ["a b", "1 2", "Ġ a"],
    "tokenizer.ggml.token_type": [1] * 8 + [3, 1],
    "tokenizer.ggml.bos_token_id": 8,
}


def test_pre_tokenizers_split_digits_as_they_should():
    merged = {"smollm": False, "qwen2": False, "gpt-2": True, "llama-bpe": True}
    for kind, whole in merged.items():
        tokenizer = from_gguf(FIELDS | {"tokenizer.ggml.pre": kind}, "x.gguf")
        assert (6 in encode(tokenizer, "12")) == whole, kind
        assert encode(tokenizer, "<s>ab") == [8, 5]


def test_bos_is_added_exactly_once():
    fields = FIELDS | {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": True}
    tokenizer = from_gguf(fields, "x.gguf")
    assert encode(tokenizer, "ab") == [8, 5]
    assert encode(tokenizer, "<s>ab") == [8, 5]


def test_unknown_tokenizers_are_none_and_broken_ones_refused():
    assert from_gguf(FIELDS | {"tokenizer.ggml.pre": "martian"}, "x.gguf") is None
    assert from_gguf({"tokenizer.ggml.model": "t5"}, "x.gguf") is None
    for name, value in [
        ("merges", ["a z"]),
        ("merges", [3]),
        ("tokens", ["a", "a"]),
        ("token_type", [1]),
        ("bos_token_id", 99),
    ]:
        with pytest.raises(ValueError, match=r"x\.gguf"):
            from_gguf(FIELDS | {"tokenizer.ggml.pre": "gpt-2", f"tokenizer.ggml.{name}": value}, "x.gguf")
