"""Bad files and configs: one ValueError that names file and field, and never a big allocation."""

import dataclasses
import json
import os
import random
import resource
import struct

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.files import safetensors_files
from pairgrpo_jax.lm.files.gguf_file import GGUFFile
from pairgrpo_jax.lm.files.safetensors_files import SafetensorsReader
from pairgrpo_jax.lm.models.model import read_config
from pairgrpo_jax.lm.models.quantized import dequantized, kind_of
from pairgrpo_jax.training.cost import bytes_on_a_device

from .conftest import FAMILY_CONFIGS, config_fields, tiny_model

MUTATIONS = int(os.environ.get("PAIRGRPO_FUZZ", "400"))  # the full run: 10000


@pytest.fixture
def folder(tmp_path, tiny):
    save_pretrained(tiny, tiny.params, tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(fields))


def write_gguf(path, changes=(), drop=()):
    """Writes a tiny Llama GGUF file with the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    fields = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        **dict(changes),
    }
    for name, value in fields.items():
        if name not in drop:
            writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ab"])
    writer.add_array("tokenizer.ggml.scores", [1.0, 2.0, 3.0])
    shapes = {"token_embd": (97, 32), "output_norm": (32,)}
    for i in range(2):
        block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
        block |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32)}
        block |= {"ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}
        shapes |= {f"blk.{i}.{k}": v for k, v in block.items()}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        x = rng.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        if len(shape) == 2:
            writer.add_tensor(f"{name}.weight", gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fails(source, *words):
    with pytest.raises(ValueError) as error:
        load_model(source)
    message = str(error.value)
    assert str(source) in message
    for word in words:
        assert word in message, message
    return message


def test_sharded_and_single_files_load_alike(tiny, folder, tmp_path):
    save_pretrained(tiny, tiny.params, tmp_path / "many", max_shard_bytes=50_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    for path in (folder, tmp_path / "many"):
        loaded = load_model(path).params
        np.testing.assert_array_equal(loaded["embed"], tiny.params["embed"])
        down = loaded["layers"]["mlp"]["down"]["kernel"]
        np.testing.assert_array_equal(down, tiny.params["layers"]["mlp"]["down"]["kernel"])


def test_saving_over_a_sharded_model_leaves_nothing_of_it(tiny, tmp_path):
    other = jax.tree.map(lambda x: x + 1, tiny.params)
    for first, second in ((50_000, 10**9), (10**9, 50_000)):
        save_pretrained(tiny, tiny.params, tmp_path, max_shard_bytes=first)
        save_pretrained(tiny, other, tmp_path, max_shard_bytes=second)
        assert (tmp_path / "model.safetensors").exists() == (second > first)
        np.testing.assert_array_equal(load_model(tmp_path).params["embed"], other["embed"])


def test_saving_leaves_weights_of_other_names_alone(tiny, folder):
    others = [folder / name for name in ("model.fp16.safetensors", "model_ema.safetensors", "model-00001.safetensors")]
    for other in others:
        other.write_bytes(b"not ours")
    save_pretrained(tiny, tiny.params, folder, max_shard_bytes=50_000)
    assert all(other.read_bytes() == b"not ours" for other in others)


def test_a_single_file_goes_before_an_index_as_in_transformers(tiny, folder, tmp_path):
    other = jax.tree.map(lambda x: x + 1, tiny.params)
    save_pretrained(tiny, other, tmp_path / "many", max_shard_bytes=50_000)
    for path in (tmp_path / "many").glob("model*"):
        path.rename(folder / path.name)
    np.testing.assert_array_equal(load_model(folder).params["embed"], tiny.params["embed"])


def test_buffers_that_nobody_reads_may_have_any_dtype(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = tiny_model("gpt2", 0)
    save_pretrained(model, model.params, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    mask = np.tri(4, dtype=np.uint8)[None, None]  # as in GPT-2's first checkpoints
    save_file(tensors | {"transformer.h.0.attn.bias": mask}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load_model(tmp_path).params["embed"], model.params["embed"])
    save_file(tensors | {"transformer.h.0.attn.c_attn.bias": mask}, tmp_path / "model.safetensors")
    fails(tmp_path, "dtypes other than BF16, F16, F32, F64: transformer.h.0.attn.c_attn.bias (U8)")


def test_parameter_dtype_is_kept_and_cast(tiny, folder):
    half = load_model(folder, dtype=jnp.bfloat16)
    assert half.params["embed"].dtype == jnp.bfloat16 and half.dtype == jnp.bfloat16
    save_pretrained(half, half.params, folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_model(folder, compute_dtype=jnp.bfloat16)
    assert again.params["embed"].dtype == jnp.float32
    np.testing.assert_array_equal(again.params["embed"], half.params["embed"].astype(jnp.float32))


def test_all_wrong_tensors_are_listed_at_once(folder):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((4, 4), np.float32)
    tensors["visual.weight"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    fails(
        folder,
        "missing model.norm.weight",
        "model.layers.1.mlp.up_proj.weight has shape (4, 4), expected (96, 64)",
        "extra visual.weight",
    )


@pytest.mark.parametrize(("family", "index"), [("llama", 2), ("qwen2", 1), ("gpt2", 0)])
def test_an_output_layer_that_contradicts_the_flag_is_taken_as_by_transformers(family, index, tmp_path, caplog):
    """Of a tied config: the same tensor twice is tied, another is used. An untied one without it is refused."""
    from safetensors.numpy import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = tiny_model(family, index)
    save_pretrained(model, model.params, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embed = next(x for name, x in tensors.items() if "embed_tokens" in name or "wte" in name)
    for head, tied in ((embed, True), (embed + 1, False)):
        save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = load_model(tmp_path)
        assert loaded.config.tied == tied and ("'tie_word_embeddings' is true" in caplog.text) != tied
        oracle = AutoModelForCausalLM.from_pretrained(tmp_path).get_output_embeddings().weight.detach().numpy()
        ours = loaded.params["embed"] if tied else loaded.params["lm_head"]["kernel"].T
        np.testing.assert_array_equal(ours, oracle)
    save_pretrained(loaded, loaded.params, tmp_path / "again")
    assert not load_model(tmp_path / "again").config.tied
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit_config(tmp_path, tie_word_embeddings=False)
    fails(tmp_path, 'missing lm_head.weight; is it the embedding? then set "tie_word_embeddings": true')


def test_wrong_vocabulary_is_refused(folder):
    edit_config(folder, vocab_size=98)
    fails(folder, "model.embed_tokens.weight has shape (97, 64), expected (98, 64)")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ["model_type", "mamba", "unknown architecture"]),
        ({"model_type": None}, ["model_type"]),
        ({"num_hidden_layers": -1}, ["num_hidden_layers"]),
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers"]),
        ({"hidden_size": 10**12}, ["hidden_size"]),
        ({"hidden_size": "big"}, ["hidden_size"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
        ({"hidden_act": "swish9"}, ["hidden_act", "swish9"]),
        ({"attention_sinks": 4}, ["attention_sinks"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"auto_map": {"AutoModel": "evil.py"}}, ["auto_map"]),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, ["rope_type"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["factor"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wobble": 1}}, ["wobble"]),
        ({"sliding_window": 8}, ["sliding_window"]),
        ({"auto_map": {"AutoConfig": "x.LlamaConfig", "AutoModelForCausalLM": "x.EvilForCausalLM"}}, ["auto_map"]),
        ({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4}}, ["partial_rotary_factor"]),
        ({"rms_norm_eps": -1.0}, ["rms_norm_eps"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
    ],
)
def test_unsupported_config_values_are_refused_by_name(folder, changes, words):
    edit_config(folder, **changes)
    fails(folder, *words)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("smollm3", {"no_rope_layers": [1, 2, 0, 1]}, ["no_rope_layers", "4 entries"]),
        *(
            (
                "smollm3",
                {"no_rope_layers": x},
                [f"'no_rope_layers' has {len(x)} entries", "_layers' = 4", "take it out"],
            )
            for x in ([], [1, 0], [1, 1, 0])
        ),
        ("qwen2", {"layer_types": ["full_attention"]}, ["'layer_types' has 1 entries", "'num_hidden_layers' = 3"]),
        ("llama", {"layer_types": ["sliding_attention"] * 3}, ["layer_types", "sliding_window = None"]),
        ("mistral", {"layer_types": ["full_attention"] * 3}, ["layer_types", "sliding_window = 8"]),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4}, ["sliding_window"]),
        ("phi3", {"attention_bias": True}, ["attention_bias"]),
        ("phi3", {"interpolate_factor": 2}, ["interpolate_factor"]),
        ("phi3", {"partial_rotary_factor": 0.2}, ["partial_rotary_factor", "3 channels"]),
        ("phi3", {"partial_rotary_factor": 1.5}, ["partial_rotary_factor"]),
        ("olmo2", {"clip_qkv": 8.0}, ["clip_qkv"]),
    ],
)
def test_unsupported_values_of_other_families_are_refused_by_name(family, changes, words):
    with pytest.raises(ValueError, match=r"config\.json") as error:
        read_config(config_fields(family) | changes, "config.json")
    assert all(word in str(error.value) for word in words), error.value


def test_ignored_fields_must_be_named(folder):
    edit_config(folder, attention_sinks=4)
    assert "--ignore-fields attention_sinks" in fails(folder, "attention_sinks = 4")
    load_model(folder, ignore_fields=("attention_sinks",))


def test_ignored_fields_may_be_those_of_rope(folder):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "finetuned_on": "books"}
    edit_config(folder, rope_parameters=scaling | {"rope_theta": 1e4})
    assert "--ignore-fields finetuned_on" in fails(folder, "finetuned_on = books")
    config = load_model(folder, ignore_fields=("finetuned_on",)).config
    assert config.rope.kind == "yarn" and config.context == 128 == 4 * 32


def test_missing_or_broken_files(tmp_path, folder):
    with pytest.raises(ValueError, match="no such"):
        load_model(tmp_path / "absent")
    (folder / "config.json").write_text("{")
    fails(folder, "config.json")
    (folder / "config.json").write_text("[1]")
    fails(folder, "JSON object")
    (folder / "config.json").write_text(json.dumps(config_fields("llama")))
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    for broken in (b"", data[:7], data[: len(data) // 2], b"\xff" * 8 + data[8:]):
        weights.write_bytes(broken)
        fails(folder, "model.safetensors")
    weights.unlink()
    for name in ("model-00001-of-00002.safetensors", "consolidated.safetensors"):
        (folder / name).write_bytes(data)
        fails(folder, "no model.safetensors", name, "need their index")
        (folder / name).unlink()
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth"):
        (folder / name).write_bytes(b"\x80\x04")
        fails(folder, "no model.safetensors", name, "never loaded")


def test_index_cannot_leave_the_folder(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    for weight_map in ({}, {"a": "../model.safetensors"}, {"a": 3}, {"a": "model.safetensors"}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        fails(folder)


def test_gguf_loads_and_odd_headers_are_refused(tmp_path):
    path = write_gguf(tmp_path / "ok.gguf")
    model = load_model(path)
    assert model.config.num_kv_heads == 1 and model.tokenizer is None
    for changes, word in [
        ({"expert_count": 4}, "llama.expert_count"),
        ({"attention.head_count": 0}, "attention.head_count"),
        ({"rope.dimension_count": 8}, "rope.dimension_count"),
        ({"block_count": 3}, "missing model.layers.2"),
        ({"block_count": 1}, "extra blk.1"),
        ({"block_count": 2**31}, "num_hidden_layers"),
    ]:
        fails(write_gguf(tmp_path / "odd.gguf", changes), word)
    fails(write_gguf(tmp_path / "odd.gguf", drop=("block_count",)), "llama.block_count")


def test_a_q8_0_file_is_held_as_it_is(tmp_path):
    path = write_gguf(tmp_path / "x.gguf")
    numbers, codes = load_model(path).params, load_model(path, quantize="q8_0").params
    assert kind_of(codes) == "q8_0" and bytes_on_a_device(codes) < 0.3 * bytes_on_a_device(numbers)
    jax.tree.map(np.testing.assert_array_equal, dequantized(codes), numbers)


def test_lying_gguf_headers(tmp_path):
    data = write_gguf(tmp_path / "ok.gguf").read_bytes()
    path = tmp_path / "bad.gguf"
    huge = struct.pack("<Q", 2**60)
    tokens = data.index(b"tokenizer.ggml.scores") + len("tokenizer.ggml.scores") + 8
    cases = {
        "magic": b"GGML" + data[4:],
        "version": data[:4] + struct.pack("<I", 99) + data[8:],
        "tensor count": data[:8] + huge + data[16:],
        "field count": data[:16] + huge + data[24:],
        "tokenizer.ggml.scores": data[:tokens] + huge + data[tokens + 8 :],
        "outside the file": data[:-4000],
        "cannot read": b"",
    }
    for word, broken in cases.items():
        path.write_bytes(broken)
        fails(path, word)


def test_every_block_type_is_read_as_gguf_dequantises_it(tmp_path):
    rng = np.random.default_rng(0)
    seen = []
    for kind, (block, width) in gguf.GGML_QUANT_SIZES.items():
        raw = rng.integers(0, 60, (2, 512 // block * width)).astype(np.uint8)
        try:
            want = gguf.quants.dequantize(raw, kind)
        except NotImplementedError:
            continue
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        writer.add_tensor("x", raw, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        np.testing.assert_array_equal(GGUFFile(tmp_path / "x.gguf").read("x"), want)
        seen.append(kind.name)
    assert len(seen) >= 20, seen


def mutate(data: bytes, rng: random.Random, header: int) -> bytes:
    """Flips bytes, writes huge numbers, cuts, repeats; mostly in the header."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(header if rng.random() < 0.9 else len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1))
            data[at : at + 8] = struct.pack("<Q", value)
        elif kind == 3:
            del data[at : at + rng.randrange(1, 64)]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.timeout(3000)
def test_mutated_files_never_crash_or_allocate(tmp_path, folder):
    """Reads `PAIRGRPO_FUZZ` mutated files of each format: whole tensors, config and all."""
    rng = random.Random(0)
    gguf_data = write_gguf(tmp_path / "ok.gguf").read_bytes()
    weights = folder / "model.safetensors"
    safe_data = weights.read_bytes()
    safe_header = 8 + struct.unpack("<Q", safe_data[:8])[0]
    gguf_header = len(gguf_data) - sum(t.nbytes for t in GGUFFile(tmp_path / "ok.gguf").tensors.values())
    path, before, outcomes = tmp_path / "bad.gguf", peak_mib(), {"read": 0, "refused": 0}

    def read_gguf():
        path.write_bytes(mutate(gguf_data, rng, gguf_header))
        file = GGUFFile(path)
        for name in file.tensors:
            file.read(name)

    def read_safetensors():
        weights.write_bytes(mutate(safe_data, rng, safe_header))
        reader = SafetensorsReader(folder)
        for name, shape in reader.shapes.items():
            reader.read(name, (slice(0, 1),) * len(shape) or ())

    for read in (read_gguf, read_safetensors):
        for _ in range(MUTATIONS):
            try:
                read()
                outcomes["read"] += 1
            except ValueError as e:
                assert str(tmp_path) in str(e)
                outcomes["refused"] += 1
    print(f"\n{MUTATIONS} mutated files of each format: {outcomes}")
    assert outcomes["refused"] > MUTATIONS / 2
    assert peak_mib() - before < 300


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_mutated_configs_never_crash(family):
    rng = random.Random(1)
    values = (None, -1, 0, 10**12, 1.5, float("nan"), "x", [], {}, True, [None], {"rope_type": 3})
    for _ in range(max(60, MUTATIONS // 10)):
        fields = config_fields(family)
        for name in rng.sample(sorted(fields), 2):
            fields[name] = rng.choice(values)
        try:
            read_config(fields, "config.json")
        except ValueError as e:
            assert "config.json" in str(e)


def test_saving_another_models_parameters_is_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match="params"):
        save_pretrained(tiny, tiny_model("gpt2").params, tmp_path)


def test_a_model_without_the_fields_of_its_config_is_not_half_saved(tmp_path, tiny):
    with pytest.raises(ValueError, match="hf_config: empty"):
        save_pretrained(dataclasses.replace(tiny, hf_config={}), tiny.params, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("operands", ["bfloat", "int8", 3, int])
def test_operands_that_are_no_dtype_of_floats_are_refused(folder, operands):
    with pytest.raises(ValueError, match=r"operands=.* must be a dtype of floats"):
        load_model(folder, operands=operands)
    assert load_model(folder, operands="bfloat16").operands == "bfloat16"


@pytest.mark.parametrize("name", ["tekken.json", "qwen.tiktoken", "spiece.model"])
def test_a_tokenizer_of_an_unknown_kind_is_told(folder, name, caplog):
    assert load_model(folder).tokenizer is None and not caplog.text
    (folder / name).write_text("{}")
    assert load_model(folder).tokenizer is None
    assert f"no tokenizer: files of the kind of {name} are not known" in caplog.text


def test_hub_ids_go_through_the_hub_client(monkeypatch, folder):
    import huggingface_hub

    asked = {}

    def download(name, allow_patterns, ignore_patterns):
        asked.update(name=name, patterns=allow_patterns, never=ignore_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("owner/name").config.family == "llama"
    assert asked["name"] == "owner/name" and "*.safetensors" in asked["patterns"]
    assert not any("bin" in p or "py" in p for p in asked["patterns"])
    wanted = ["config.json", "model-00001-of-00002.safetensors", "adapter_model.safetensors"]
    others = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "onnx/model.safetensors"]
    how = {"allow_patterns": asked["patterns"], "ignore_patterns": asked["never"]}
    assert list(huggingface_hub.utils.filter_repo_objects([*wanted, *others], **how)) == wanted
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"owner/name: .* GGUF files are not fetched: download one and name its path"):
        load_model("owner/name")

    def refuse(name, allow_patterns, ignore_patterns):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"owner/name.*offline"):
        load_model("owner/name")
    for name in ("nothing", "a/b/c", "../x", "/no/where"):
        with pytest.raises(ValueError, match="no such"):
            load_model(name)


def test_a_transposed_tensor_is_written_as_it_is(tmp_path):
    """`safetensors.numpy` writes the memory of a view in its own order (findings/safetensors_numpy_views.sh)."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors_files.write(tmp_path, {"x": (24, lambda: x.T)}, 10**6)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["x"], x.T)


def test_a_truncated_call_leaves_no_trace_in_the_saved_tokenizer(tmp_path, tiny):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(97)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")), pad_token="w1"
    )
    tokenizer(["w5", "w6"], truncation=True, max_length=2, padding="max_length")
    save_pretrained(dataclasses.replace(tiny, tokenizer=tokenizer), tiny.params, tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
