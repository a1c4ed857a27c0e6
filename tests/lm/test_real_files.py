"""Checkpoints as people have them: other tools' notes, tokens without a row, end ids in several places."""

import copy
import dataclasses
import json
import logging

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from pairgrpo_jax.commands import align, evaluate, generate, reward_model
from pairgrpo_jax.lm import data, load_model, save_pretrained
from pairgrpo_jax.lm import generate as lm_generate
from pairgrpo_jax.lm.files.exported import exported_fields
from pairgrpo_jax.lm.files.gguf_file import GGUFFile
from pairgrpo_jax.lm.models.model import Model, read_config
from pairgrpo_jax.lm.models.params import init_params

from .conftest import CASES, config_fields
from .test_gguf import write

CHATML = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eot>\n{% endfor %}"
CHATML += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPECIAL = ("<bos>", "<eos>", "<eot>")  # 256, 257, 258


def byte_tokenizer(template=CHATML, added=(), **special):
    """A tokenizer of bytes: bos 256, eos 257, `<eot>` 258."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*letters, *SPECIAL])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (*SPECIAL, *added)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


def fields_of(**changes):
    """The config of a Llama of one layer over those bytes."""
    fields = {"model_type": "llama", "vocab_size": 260, "hidden_size": 16, "intermediate_size": 16}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128}
    return fields | {"bos_token_id": 256, "eos_token_id": 257} | changes


@pytest.fixture(scope="module")
def params():
    return init_params(read_config(fields_of(), "config.json"), jax.random.key(0))


def save(folder, params, tokenizer=None, generation=None, **changes):
    """Writes a model folder; `changes` are of config.json, None takes a field away."""
    fields = fields_of()
    model = Model(read_config(fields, "config.json"), params, tokenizer or byte_tokenizer(), fields)
    save_pretrained(model, params, folder)
    stored = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize("added", [("<image>",), ("<image>", "<audio>"), tuple(f"<extra_{i}>" for i in range(40))])
def test_added_tokens_without_a_row_are_refused_only_in_a_text_with_them(tmp_path, params, added, caplog):
    caplog.set_level(logging.INFO, "pairgrpo_jax.lm")
    tokenizer = byte_tokenizer(added=("<last>", *added))
    model = load_model(save(tmp_path, params, tokenizer))
    assert "no row for" in caplog.text and added[0] in caplog.text and "<last>" not in caplog.text
    user = {"role": "user", "content": "Look <last>"}
    assert 259 in data.encode_prompt(model, (user,), 99)
    for token in added:
        message = f"the text contains '{token}', whose id .* has no row"
        with pytest.raises(ValueError, match=message):
            data.encode_prompt(model, (user | {"content": f"Look {token}"},), 99)
        with pytest.raises(ValueError, match=message):
            data.encode_reply(model, token, 99)
        for chat in (True, False):
            with pytest.raises(ValueError, match=message):
                generate.encode_messages(model, [user | {"content": token}], chat)


def test_a_vocabulary_of_another_model_is_still_refused(tmp_path, params):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({chr(i): i for i in range(300)}, [])))
    with pytest.raises(ValueError, match="ids go up to 299, field 'vocab_size' = 260"):
        load_model(save(tmp_path, params, tokenizer))


NEUTRAL = [
    {"use_mrope": False, "use_sliding_window": False, "max_length": 4096},  # Qwen2.5 and R1-Distill
    {"unsloth_fixed": True, "unsloth_version": "2025.3.1", "_attn_implementation_autoset": True},
    {"axolotl_config_path": "x.yaml", "use_flash_attention_2": True, "neftune_noise_alpha": 5.0},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
    {"quantization_config": {"load_in_8bit": False, "load_in_4bit": False}, "pruned_heads": {}},
    {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}, "tokenizer_class": "XTokenizer"},
    {"auto_map": {}, "num_experts": 0, "vision_config": None, "image_token_id": 151655},
    {"n_special": 0},  # this and the next three: GPT-2's files
    {"predict_special_tokens": True},
    {"output_past": True},
    {"_num_labels": 1},
    {"quantization_config": {}},
    {"layer_types": ["full_attention"]},
    {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "is_decoder": True, "embedding_multiplier": 1.0},
]
REFUSED = [
    {"use_mrope": True},
    {"unknown_tool": "v1"},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    {"auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}},
    {"num_experts": 8},
    {"embedding_multiplier": 12.0},
]


@pytest.mark.parametrize("changes", NEUTRAL, ids=lambda c: next(iter(c)))
def test_fields_that_change_nothing_are_accepted(changes):
    assert read_config(fields_of(**changes), "config.json") == read_config(fields_of(), "config.json")


@pytest.mark.parametrize("changes", REFUSED, ids=lambda c: next(iter(c)))
def test_the_remedy_for_other_fields_works_from_the_command_line(tmp_path, params, run_here, changes):
    folder = save(tmp_path / "model", params, **changes)
    (name,) = changes
    remedy = ["--ignore-fields", name]
    with pytest.raises(
        ValueError, match=r"config\.json: fields .* does not implement: .*; to load .*: " + " ".join(remedy)
    ):
        load_model(folder)
    words = ["--model", folder, "--prompt", "a", "--max-new-tokens", 2]
    assert run_here(generate.main, *words).returncode == 2
    assert run_here(generate.main, *words, *remedy).returncode == 0


@pytest.mark.parametrize("main", [align.main, reward_model.main, evaluate.main])
def test_every_command_that_loads_a_model_can_ignore_fields(tmp_path, params, run_here, main):
    folder = save(tmp_path / "model", params, attention_sink_size=4)
    words = ["--a", folder, "--b", folder, "--reference", folder] if main == evaluate.main else ["--model", folder]
    words += ["--output", tmp_path / "out"]
    stopped = run_here(main, *words)
    assert stopped.returncode == 2 and "--ignore-fields attention_sink_size" in stopped.stderr
    beyond = run_here(main, *words, "--ignore-fields", "attention_sink_size", "--data", "nowhere.jsonl")
    assert "ignore-fields" not in beyond.stderr and ("nowhere.jsonl" in beyond.stderr or "head" in beyond.stderr)


def gguf_of(path, params, **fields):
    """A GGUF file of the model; fields without a dot are the tokenizer's."""
    model = Model(read_config(fields_of(), "config.json"), params)
    write(model, path, **fields)
    return path


def test_fields_of_gguf_files_are_ignored_by_name_and_off_values_accepted(tmp_path, params):
    path = gguf_of(tmp_path / "model.gguf", params, **{"expert_count": 0.0, "attention.clamp_kqv": 0.0})
    config = load_model(path).config
    gguf_of(path, params, **{"attention.clamp_kqv": 8.0})
    with pytest.raises(ValueError, match=r"load without them: --ignore-fields llama.attention.clamp_kqv "):
        load_model(path)
    for name in ("llama.attention.clamp_kqv", "attention.clamp_kqv"):
        assert load_model(path, ignore_fields=(name,)).config == config


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"eos": 257}, (257,)),
        ({"eos": 257, "eot": 258}, (257, 258)),
        ({"eos": 258, "eot": 258}, (258,)),
        ({"eot": 258}, (258,)),
        ({"eos": 257, "eot": 258, "eom": 259}, (257, 258, 259)),
    ],
)
def test_all_end_ids_of_gguf_files_end_replies(tmp_path, params, given, ends):
    path = gguf_of(tmp_path / "model.gguf", params, token_ids=given)
    model = load_model(path)
    assert model.config.eos_ids == ends
    save_pretrained(model, model.params, tmp_path / "out")
    assert load_model(tmp_path / "out").config.eos_ids == ends


@pytest.mark.parametrize(
    ("data_", "name"),
    [(b"\xef\xbb\xbf%s", "UTF-8"), (b"\xff\xfe%s", "UTF-16"), (b"\xfe\xff%s", "UTF-16"), (b"\xff\xfe\0\0%s", "UTF-32")],
)
def test_byte_order_marks_are_named(tmp_path, params, data_, name):
    folder = save(tmp_path / "model", params)
    rows = data_ % b'{"prompt": "a"}'
    for suffix in ("jsonl", "json"):
        path = tmp_path / f"rows.{suffix}"
        path.write_bytes(rows)
        with pytest.raises(ValueError, match=rf"rows.{suffix}: begins with a {name} byte order mark \(BOM\)"):
            data.load_prompts(str(path))
    with pytest.raises(ValueError, match="byte order mark"):
        generate.read_prompts(tmp_path / "rows.jsonl")
    (folder / "generation_config.json").write_text("{}")
    for file in (
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
    ):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(data_ % whole)
        with pytest.raises(ValueError, match=rf"{file}: begins with a {name} byte order mark"):
            load_model(folder)
        (folder / file).write_bytes(whole)


@pytest.mark.parametrize("version", [2, 3])
def test_big_endian_gguf_files_are_named(tmp_path, version):
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = path.read_bytes()
    path.write_bytes(found[:4] + version.to_bytes(4, "big") + found[8:])
    with pytest.raises(ValueError, match=r"big-endian GGUF file; convert it: gguf-convert-endian .* little"):
        GGUFFile(path)


ENDS = [  # of generation_config.json, of config.json, of the tokenizer; what ends texts
    ([257, 258], 257, "<eos>", (257, 258)),
    (258, 257, "<eos>", (258,)),
    (None, [257, 258], "<eos>", (257, 258)),
    ([258, 257], [257], "<eos>", (258, 257)),
    (None, None, "<eos>", (257, 258)),  # 258 as the template writes it
    (None, 257, "<eos>", (257, 258)),
    (257, [257, 258], "<eos>", (257, 258)),
    (None, None, "<eot>", (258,)),
]


@pytest.mark.parametrize(("generation", "stored", "token", "ends"), ENDS)
def test_end_ids_come_from_where_transformers_takes_them(tmp_path, params, generation, stored, token, ends):
    sampling = {"temperature": 0.6, "top_p": 0.95, "do_sample": True, "pad_token_id": 259}
    fields = None if generation is None else sampling | {"eos_token_id": generation}
    folder = save(tmp_path / "a", params, byte_tokenizer(eos_token=token), fields, eos_token_id=stored)
    model = load_model(folder)
    assert model.config.eos_ids == ends and data.end_of_turn(model) == 258
    assert data.encode_reply(model, "b", 9) == [*model.tokenizer("b")["input_ids"], 258]
    save_pretrained(model, model.params, tmp_path / "b")
    again = load_model(tmp_path / "b")
    assert again.config.eos_ids == ends
    theirs = AutoConfig if (generation, stored) == (None, [257, 258]) else GenerationConfig  # which says it already
    theirs = theirs.from_pretrained(tmp_path / "b")
    assert theirs.eos_token_id == (list(ends) if len(ends) > 1 else ends[0])
    if fields is not None:
        assert {name: getattr(theirs, name) for name in sampling} == sampling
    plain = dataclasses.replace(model, generation={}, hf_config=fields_of(eos_token_id=theirs.eos_token_id))
    save_pretrained(plain, model.params, tmp_path / "b")
    assert not (tmp_path / "b" / "generation_config.json").exists()


APPLIED = {"temperature": 0.6, "top_k": 20, "do_sample": True, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
TOLD = {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "bad_words_ids": [[5]], "suppress_tokens": [7]}


def test_generation_fields_that_change_greedy_text_and_are_not_applied_are_told(tmp_path, params, caplog):
    load_model(save(tmp_path, params, generation=APPLIED | {"eos_token_id": [257, 258], "bad_words_ids": None}))
    assert not caplog.text
    load_model(save(tmp_path, params, generation=APPLIED | TOLD | {"eos_token_id": [257, 258]}))
    (record,) = caplog.records
    assert "generation_config.json: not applied" in record.message
    assert all(f"{name} = {value}" in record.message for name, value in TOLD.items()) and "top_k" not in caplog.text


@pytest.mark.parametrize("bad", ["<eos>", [257, "x"], 1.5])
def test_end_ids_that_are_none_are_refused(tmp_path, params, bad):
    folder = save(tmp_path, params, generation={"eos_token_id": bad})
    with pytest.raises(ValueError, match=r"generation_config\.json: field 'eos_token_id' = .*: expected an id"):
        load_model(folder)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json: cannot read as JSON"):
        load_model(folder)


@pytest.mark.parametrize("end", [257, 258, 65])
def test_generation_stops_at_each_end_id(tmp_path, params, end):
    model = load_model(save(tmp_path, params, generation={"eos_token_id": [257, 258]}))
    bias = params | {"embed": jnp.ones((260, 16)), "lm_head": {"kernel": jnp.zeros((16, 260)).at[:, end].set(1.0)}}
    bias |= {"layers": jax.tree.map(jnp.zeros_like, params["layers"])}
    said = lm_generate(model, bias, [[1, 2]], key=jax.random.key(0), max_new_tokens=4, temperature=0)
    assert said.tokens[0, 0, 0] == end and said.lengths[0, 0] == (4 if end == 65 else 1)


TEMPLATES = {
    "chatml": (CHATML, 258),
    "eos": ("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", 257),
    "blank before it": ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} \n<eot>{% endfor %}", 258),
    "two tokens": ("{% for m in messages %}{{ m['content'] }}<eot><eos>{% endfor %}", 258),
    "text": ("{% for m in messages %}{{ m['content'] }}\n###\n{% endfor %}", 257),
    "nothing": ("{% for m in messages %}{{ m['content'] }}{% endfor %}", 257),
    "refuses": ("{{ raise_exception('no') }}", 257),
    "none": (None, 257),
}


@pytest.mark.parametrize(("template", "end"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_reply_ends_with_what_the_template_writes_or_an_option_says(tmp_path, params, caplog, template, end):
    folder = save(tmp_path, params, byte_tokenizer(template))
    model = load_model(folder)
    assert data.end_of_turn(model) == end and end in model.config.eos_ids and 257 in model.config.eos_ids
    assert data.end_of_turn(dataclasses.replace(model, config=dataclasses.replace(model.config, reply_end=None))) == end
    assert ("it joins the end ids" in caplog.text) == (end == 258)
    assert ("no token" in caplog.text) == (template is not None and "###" in template)
    for name in ("<bos>", "256"):
        chosen = load_model(folder, end_of_turn=name)
        assert data.end_of_turn(chosen) == 256 and chosen.config.eos_ids == (257, 256)
    for name in ("<nowhere>", "260", "-1", ""):
        with pytest.raises(ValueError, match=f"end_of_turn = '{name}': not a token of .*config.json"):
            load_model(folder, end_of_turn=name)


def test_the_command_line_overrides_the_end_of_turn(tmp_path, params, run_here):
    folder = save(tmp_path / "model", params)
    words = ["--model", folder, "--end-of-turn", "<nowhere>"]
    for main in (align.main, reward_model.main, generate.main):
        done = run_here(main, *words)
        assert done.returncode == 2 and "end_of_turn = '<nowhere>': not a token" in done.stderr
    assert (
        run_here(generate.main, *words[:2], "--end-of-turn", "A", "--prompt", "a", "--max-new-tokens", 2).returncode
        == 0
    )


@pytest.mark.parametrize(("family", "index"), [case for case in CASES if case[0] != "gpt2"])
def test_rope_is_exported_as_transformers_4_and_5_read_it(family, index):
    fields = config_fields(family, index)
    fields.pop("auto_map", None)
    before = copy.deepcopy(fields)
    config = read_config(fields, "config.json")
    written = exported_fields(Model(config, None, hf_config=fields), "float32")
    assert fields == before
    assert written["rope_theta"] == config.rope.theta
    assert read_config(written, "config.json") == config
    for form in ("rope_parameters",), ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        alone = {name: value for name, value in written.items() if name not in form}
        assert read_config(alone, "config.json") == config, form
    assert "rope_theta" not in (written["rope_scaling"] or {})  # 4.57 warns of it
