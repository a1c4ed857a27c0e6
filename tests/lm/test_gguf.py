"""GGUF files of every supported family, written with llama.cpp's conventions, load as they were."""

import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import load_model
from pairgrpo_jax.lm.files.gguf_file import GGUFFile
from pairgrpo_jax.lm.files.gguf_parts import GGUFModel
from pairgrpo_jax.lm.files.tokenizer import encode, from_gguf
from pairgrpo_jax.lm.files.weights import stored_tensors
from pairgrpo_jax.lm.models.model import FAMILIES

from .conftest import config_fields, tiny_model, torch_model

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "phi3": gguf.MODEL_ARCH.PHI3,
}


def permute(x, heads):
    """As llama.cpp's convert_hf_to_gguf.py does."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(model, path, token_ids=(), more=None, split=None, **extra):
    """Writes a model of ours as a GGUF file, in parts as `split` says; `more` adds fields and tensors."""
    config = model.config
    arch = ARCHITECTURES[config.family]
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(path, name, **(split or {}))
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope.theta)
    if name == "phi3":
        add_phi3(writer, config)
    else:
        writer.add_key_length(config.head_dim)
    if any(config.windows) or name == "phi3":
        writer.add_sliding_window(max(config.windows))
    if more is not None:
        more(writer)
    for key, value in extra.items():
        writer.add_key_value(f"{name}.{key}", value, gguf.GGUFValueType.FLOAT32)
    for key, value in dict(token_ids).items():
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", value)
    table = gguf.get_tensor_name_map(arch, config.num_layers)
    names = FAMILIES[config.family].tensor_names(config)
    for theirs, (_, make) in stored_tensors(names, model.params).items():
        x = np.asarray(make())
        if name in ("llama", "smollm3") and ("q_proj" in theirs or "k_proj" in theirs):
            x = permute(x, config.num_heads if "q_proj" in theirs else config.num_kv_heads)
        if name.startswith("gemma") and theirs.endswith("norm.weight"):
            x = x + 1
        writer.add_tensor(table.get_name(theirs, try_suffixes=(".weight", ".bias")), x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_phi3(writer, config):
    """As the converter does for Phi-3 alone: rotated channels, longrope as two tensors and a factor."""
    rope = config.rope
    writer.add_rope_dimension_count(int(config.head_dim * rope.partial))
    writer.add_rope_scaling_orig_ctx_len(rope.original_max or config.max_positions)
    if rope.kind == "longrope":
        writer.add_rope_scaling_attn_factors(rope.attention_factor)
        writer.add_tensor("rope_factors_long.weight", np.asarray(rope.long_factor, np.float32))
        writer.add_tensor("rope_factors_short.weight", np.asarray(rope.short_factor, np.float32))


GGUF_CASES = {"llama": (0, 2), "qwen2": (0,), "qwen3": (0, 2), "gemma2": (0,), "gemma3_text": (1,)}
GGUF_CASES |= {"smollm3": (0, 7), "olmo2": (0, 1), "phi3": (0, 1, 2, 3)}


# The oracle is the folder of the same config, which test_parity.py compares with transformers: its own loader of GGUF
# (5.23.0) knows neither SmolLM3 nor OLMo 2, and of Phi-3 neither window, longrope nor partial rotation.
@pytest.mark.parametrize(("family", "index"), [(name, i) for name, which in GGUF_CASES.items() for i in which])
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
    ropes = [jax.tree.leaves(dataclasses.astuple(dataclasses.replace(c.rope, kind=0))) for c in (got, want)]
    np.testing.assert_allclose(*ropes, rtol=1e-6)  # the file has longrope's numbers as float32
    assert got == dataclasses.replace(want, rope=dataclasses.replace(got.rope, kind=want.rope.kind))


def test_phi3_files_that_lack_a_half_of_longrope_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(tiny_model("phi3", 2), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"rope_factors_short", b"rope_factors_other"))
    with pytest.raises(ValueError, match=r"missing tensor 'rope_factors_short\.weight'"):
        load_model(path)
    path.write_bytes(data.replace(b"rope_factors_", b"none_factors_"))
    with pytest.raises(ValueError, match=r"extra none_factors_long\.weight"):
        load_model(path)
    for kind in ("longrope", "yarn", "linear"):
        write(tiny_model("phi3", 0), path, more=lambda w, kind=kind: w.add_string("phi3.rope.scaling.type", kind))
        with pytest.raises(ValueError, match=r"field 'phi3\.rope\.scaling\.type' = '" + kind):
            load_model(path)


def test_a_phi3_file_that_does_not_name_its_window_is_told(tmp_path, caplog):
    path = tmp_path / "model.gguf"
    write(tiny_model("phi3", 0), path)
    path.write_bytes(path.read_bytes().replace(b"phi3.attention.sliding_window", b"note.attention.sliding_window"))
    assert load_model(path).config.windows == (0, 0, 0)
    assert "no field 'phi3.attention.sliding_window'" in caplog.text


def test_an_old_phi3_file_without_the_original_context_was_never_stretched(tmp_path):
    path, model = tmp_path / "model.gguf", tiny_model("phi3", 0)
    write(model, path)
    name = b"phi3.rope.scaling.original_context_length"
    path.write_bytes(path.read_bytes().replace(name, name.replace(b"phi3", b"note")))
    assert load_model(path).config.context == model.config.max_positions


def test_the_base_of_gemma3s_local_layers_is_read_where_a_file_has_it(tmp_path):
    path, model = tmp_path / "model.gguf", tiny_model("gemma3_text", 1)
    write(model, path, **{"rope.freq_base_swa": 5e4})
    assert load_model(path).config.local_rope.theta == 5e4 != model.config.local_rope.theta
    write(model, path)
    assert load_model(path).config.local_rope.theta == model.config.local_rope.theta


@pytest.fixture(params=[{"split_max_tensors": 4}, {"split_max_tensors": 7, "small_first_shard": True}])
def parts(request, tmp_path):
    """A model in parts, all with tensors or all but the first, in a folder of its own."""
    model, folder = tiny_model("llama", 0), tmp_path / "parts"
    folder.mkdir()
    write(model, folder / "m.gguf", split=request.param)
    return model, sorted(folder.iterdir())


def test_parts_are_read_together(parts):
    model, files = parts
    assert len(files) >= 4 and files[1].name == f"m-00002-of-{len(files):05d}.gguf"
    for path in (files[0].parent, files[0], files[-1]):
        loaded = load_model(path)
        assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, model.params))
    (files[0].parent / "config.json").write_text("{}")  # hubs put one beside GGUF files
    load_model(files[0].parent)
    capitals = [file.rename(file.with_suffix(".GGUF")) for file in files]
    for path in (capitals[0].parent, capitals[1]):
        load_model(path)


def test_missing_and_foreign_parts_are_named(parts):
    _, files = parts
    renamed = files[0].with_name("other.gguf")
    renamed.write_bytes(files[0].read_bytes())
    with pytest.raises(ValueError, match=r"other\.gguf: field 'split\.count'.*NAME-00001"):
        load_model(renamed)
    with pytest.raises(ValueError, match=r"parts: holds 2 models; name the file of one: .*m-00001-of.*, .*other\.gguf"):
        load_model(files[0].parent)
    renamed.unlink()
    data = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(ValueError, match=rf"{files[2].name}: field 'split\.no' = 1: expected 2"):
        load_model(files[0])
    files[2].unlink()
    for path in (files[0], files[0].parent):
        with pytest.raises(ValueError, match=rf"of {len(files)} parts, 1 are missing: .*{files[2].name}"):
            load_model(path)
    files[2].write_bytes(data)
    files[0].unlink()
    with pytest.raises(ValueError, match=rf"1 are missing: .*{files[0].name}"):
        load_model(files[0].parent)


def test_a_folder_of_two_quantisations_asks_for_the_file(tmp_path):
    for name in ("m-Q4_0.gguf", "m-Q8_0.gguf"):
        write(tiny_model("llama", 0), tmp_path / name)
    with pytest.raises(ValueError, match=r"holds 2 models; name the file of one: .*m-Q4_0\.gguf, .*m-Q8_0\.gguf"):
        load_model(tmp_path)
    load_model(tmp_path / "m-Q8_0.gguf")
    with pytest.raises(ValueError, match="there is no part 3 of 2"):
        (tmp_path / "m-Q8_0.gguf").rename(tmp_path / "m-00003-of-00002.gguf")
        load_model(tmp_path / "m-00003-of-00002.gguf")


def test_parts_of_two_models_do_not_mix(parts):
    first, second, *_ = files = [GGUFFile(path) for path in parts[1]]
    first.fields["split.tensors.count"] += 1
    with pytest.raises(ValueError, match=r"field 'split\.tensors\.count'"):
        GGUFModel(files)
    files[2] = second
    with pytest.raises(ValueError, match=r"field 'split\.no' = 1: expected 2"):
        GGUFModel(files)
    files[2] = GGUFFile(parts[1][1])
    files[2].fields["split.no"] = 2
    with pytest.raises(ValueError, match=r"tensor '.*' is in .* too"):
        GGUFModel(files)


@pytest.mark.parametrize(("field", "value"), [("rope.scaling.attn_factor", 0.5), ("rope.scaling.factor", 4.0)])
def test_a_rope_field_without_effect_is_refused(tmp_path, field, value):
    write(tiny_model("llama", 0), tmp_path / "model.gguf", **{field: value})
    with pytest.raises(ValueError, match=f"field 'llama.{field}'"):
        load_model(tmp_path / "model.gguf")


def scaled(writer, kind):
    """Adds 97 tokens and a rope scaling, as llama.cpp's converter writes that of the config of the same kind."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(97)])
    if kind == "llama3":
        pace = np.float64(1e4) ** (-np.arange(0, 16, 2) / 16)
        smooth = np.clip((32 * pace / (2 * np.pi) - 1) / 3, 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32))
        return
    writer.add_string("llama.rope.scaling.type", kind)
    writer.add_float32("llama.rope.scaling.factor", 4.0)
    if kind == "yarn":
        writer.add_uint32("llama.rope.scaling.original_context_length", 64)
        writer.add_float32("llama.rope.scaling.yarn_beta_fast", 4.0)
        writer.add_float32("llama.rope.scaling.yarn_beta_slow", 1.0)


SCALINGS = {
    "linear": {"factor": 4.0, "rope_theta": 1e4},
    "yarn": {"factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64, "beta_fast": 4.0},
    "llama3": {
        "factor": 8.0,
        "rope_theta": 1e4,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_rope_is_that_of_the_config_not_of_transformers_gguf_loader(kind, tmp_path):
    """The oracle is `transformers`' model of the config; its own GGUF loader (5.23.0) drops the scaling."""
    torch = pytest.importorskip("torch", reason="the parity oracle needs torch (extra: parity)")
    pytest.importorskip("accelerate", reason="transformers' GGUF loader needs accelerate")
    from transformers import AutoModelForCausalLM

    fields = config_fields("llama") | {"rope_parameters": SCALINGS[kind] | {"rope_type": kind}}
    oracle = torch_model(fields)
    oracle.save_pretrained(tmp_path)
    write(load_model(tmp_path), tmp_path / "model.gguf", more=functools.partial(scaled, kind=kind))
    model = load_model(tmp_path / "model.gguf")
    tokens = np.random.default_rng(0).integers(3, 97, (1, 96))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    with torch.no_grad():
        want, theirs = (m(torch.as_tensor(tokens)).logits.numpy() for m in (oracle, loaded))
    np.testing.assert_allclose(model.apply(model.params, jnp.asarray(tokens)), want, atol=2e-4, rtol=0)
    assert np.abs(theirs - want).max() > 0.1, "transformers' loader reads this scaling now: compare with it"


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
    merged = {"smollm": False, "qwen2": False, "gpt-2": True, "llama-bpe": True, "smaug-bpe": True, "dbrx": True}
    merged |= {"gpt-4o": True, "llama3": True, "llama-v3": True, "deepseek-r1-qwen": False}
    for kind, whole in merged.items():
        tokenizer = from_gguf(FIELDS | {"tokenizer.ggml.pre": kind}, "x.gguf")
        assert (6 in encode(tokenizer, "12")) == whole, kind
        assert encode(tokenizer, "<s>ab") == [8, 5]
    cased = from_gguf(FIELDS | {"tokenizer.ggml.pre": "gpt-4o"}, "x.gguf").backend_tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in cased.pre_tokenize_str("HelloWorld it's 1234")]
    assert pieces == ["Hello", "World", "Ġit's", "Ġ", "123", "4"]


def test_bos_is_added_exactly_once():
    fields = FIELDS | {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": True}
    tokenizer = from_gguf(fields, "x.gguf")
    assert encode(tokenizer, "ab") == [8, 5]
    assert encode(tokenizer, "<s>ab") == [8, 5]


LLAMA_3 = ("llama-bpe", "llama3", "llama-v3")


@pytest.mark.parametrize("kind", [*LLAMA_3, "qwen2", "gpt-2", "dbrx", "smaug-bpe"])
def test_llama_3_has_bos_where_the_file_does_not_say_and_takes_whole_words(kind):
    """As in llama.cpp; the piece of two digits is in the vocabulary, and no merges lead to it."""
    fields = FIELDS | {"tokenizer.ggml.pre": kind, "tokenizer.ggml.merges": ["a b"]}
    bos = [8] if kind in LLAMA_3 else []
    tokenizer = from_gguf(fields, "x.gguf")
    assert tokenizer("ab")["input_ids"] == encode(tokenizer, "ab") == [*bos, 5]
    assert (encode(tokenizer, "12") == [*bos, 6]) == (kind in LLAMA_3)
    for said in (True, False):
        tokenizer = from_gguf(fields | {"tokenizer.ggml.add_bos_token": said}, "x.gguf")
        assert tokenizer("ab")["input_ids"] == [8] * said + [5]
    del fields["tokenizer.ggml.bos_token_id"]
    assert from_gguf(fields, "x.gguf")("ab")["input_ids"] == [5]


CONTROLS = ["<s>", "</s>", "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>"]
PIECES = ["<unk>", *CONTROLS, "▁Hi", "▁[", "▁H", "Hi", "▁", "[", "H", "i", "\n"]
SPACED = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": [0.0] * 7 + [-float(i) for i in range(9)],
    "tokenizer.ggml.token_type": [2] + [3] * 6 + [1] * 9,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 5,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": False,
}


def split(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_a_space_stands_before_all_that_follows_a_control_token():
    """As in llama.cpp, and in `transformers` for what says `legacy`; its GGUF loader has one before a text alone."""
    from transformers import LlamaTokenizer

    ours = from_gguf(SPACED | {"general.architecture": "llama"}, "x.gguf")
    text = "<s>[Hi [Hi</s>\nHi<|user|>Hi"
    want = ["<s>", "▁[", "Hi", "▁[", "Hi", "</s>", "▁", "\n", "Hi", "<|user|>", "▁Hi"]
    assert split(ours, text) == want
    merges = [("▁", "Hi"), ("▁H", "i"), ("▁", "["), ("▁", "H"), ("H", "i")]
    vocab = {piece: i for i, piece in enumerate(PIECES)}
    legacy, other = (LlamaTokenizer(vocab=vocab, merges=merges, legacy=x, add_bos_token=False) for x in (True, False))
    for tokenizer in (legacy, other):
        tokenizer.add_tokens(CONTROLS, special_tokens=True)
    for some in (text, "Hi Hi", " Hi", "</s> Hi", "</s>", "<s></s>[", "Hi<s> \n [", ""):
        assert split(ours, some) == split(legacy, some)
    assert split(other, text) != want
    bare = from_gguf(SPACED | {"tokenizer.ggml.add_space_prefix": False}, "x.gguf")
    assert split(bare, text) == [{"▁Hi": "Hi"}.get(x, x) for x in ["<s>", "[", *want[2:6], *want[7:]]]


def test_the_control_tokens_of_phi3_take_the_space_behind_them(tmp_path):
    """As Phi-3's own tokenizer.json says, and llama.cpp."""
    from transformers import AutoTokenizer

    phi = from_gguf(SPACED | {"general.architecture": "phi3"}, "x.gguf")
    phi.save_pretrained(tmp_path)
    chat = "<|user|>\nHi<|end|>\n<|assistant|>\n"
    for tokenizer in (phi, AutoTokenizer.from_pretrained(tmp_path)):
        assert split(tokenizer, chat) == ["<|user|>", "▁Hi", "<|end|>", "<|assistant|>"]
        assert split(tokenizer, "</s> \nHi") == ["</s>", "▁Hi"]
        for kept in ("<s>", "<|endoftext|>"):
            assert split(tokenizer, f"{kept}\nHi") == [kept, "▁", "\n", "Hi"]
    llama = from_gguf(SPACED | {"general.architecture": "llama"}, "x.gguf")
    assert split(llama, "<|user|>\nHi") == ["<|user|>", "▁", "\n", "Hi"]


def test_unknown_tokenizers_are_none_and_broken_ones_refused(caplog):
    assert from_gguf({}, "x.gguf") is None and not caplog.text
    assert from_gguf(FIELDS | {"tokenizer.ggml.pre": "martian"}, "x.gguf") is None
    assert "x.gguf: no tokenizer: field 'tokenizer.ggml.pre' = 'martian' is not known" in caplog.text
    assert from_gguf({"tokenizer.ggml.model": "t5"}, "x.gguf") is None
    assert "x.gguf: no tokenizer: field 'tokenizer.ggml.model' = 't5' is not known" in caplog.text
    for name, value in [
        ("merges", ["a z"]),
        ("merges", [3]),
        ("tokens", ["a", "a"]),
        ("token_type", [1]),
        ("bos_token_id", 99),
    ]:
        with pytest.raises(ValueError, match=r"x\.gguf"):
            from_gguf(FIELDS | {"tokenizer.ggml.pre": "gpt-2", f"tokenizer.ggml.{name}": value}, "x.gguf")
