"""The real SmolLM2-135M-Instruct (dequantised Q4_1): tokenizer, logits, text, saving."""

import copy
import gzip
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import generate, load_model, save_pretrained
from pairgrpo_jax.lm.files.checkpoint import smollm2_path
from pairgrpo_jax.lm.files.tokenizer import encode, encode_chat

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def texts():
    """Prompts and replies of the real preference data where it is at hand, else the 50 prompts beside this file."""
    folder = Path(os.environ.get("PAIRGRPO_DATA", "nowhere")) / "hh-rlhf-harmless-base"
    if not folder.is_dir():
        return (Path(__file__).parent / "prompts.txt").read_text(encoding="utf-8").splitlines()
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as f:
        return [json.loads(line)[k] for line in f for k in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def oracle(smollm2):
    torch = pytest.importorskip("torch", reason="the parity oracle needs torch (extra: parity)")
    pytest.importorskip("accelerate", reason="transformers' GGUF loader needs accelerate")
    from transformers import AutoModelForCausalLM

    path = smollm2_path()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


def test_size_and_ids(smollm2):
    assert sum(x.size for x in jax.tree.leaves(smollm2.params)) == 134_515_008
    config = smollm2.config
    assert (config.rope.theta, config.eos_ids, config.pad_id, config.bos_id) == (1e5, (2,), 2, 1)


def test_tokenizer_splits_digits_and_round_trips(smollm2):
    tokenizer = smollm2.tokenizer
    assert len(encode(tokenizer, "2026")) == 4
    for text in ("Hello, world!  \n\n\tx", "naïve café — 日本語 🙂", "<|im_start|>user"):
        assert tokenizer.decode(encode(tokenizer, text)) == text
    assert encode(tokenizer, "<|im_end|>") == [2]


def test_tokenizer_round_trips_all_texts(smollm2, texts):
    ids = smollm2.tokenizer(texts)["input_ids"]
    assert smollm2.tokenizer.batch_decode(ids) == texts


def test_chat_prompt_has_one_bos(smollm2):
    ids = encode_chat(smollm2.tokenizer, QUESTION)
    text = smollm2.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\n")
    assert ids[:2] != [1, 1] and text.count("<|im_start|>") == 3


def test_capital_of_france(smollm2):
    ids = encode_chat(smollm2.tokenizer, QUESTION)
    out = generate(smollm2, smollm2.params, [ids], max_new_tokens=16, key=jax.random.key(0), temperature=0.0)
    text = smollm2.tokenizer.decode(out.tokens[0, 0, : out.lengths[0, 0]])
    assert text == "The capital of France is Paris.<|im_end|>"
    stopped = generate(
        smollm2,
        smollm2.params,
        [ids],
        max_new_tokens=16,
        key=jax.random.key(0),
        temperature=0.0,
        stop_strings=["France"],
    )
    text = smollm2.tokenizer.decode(stopped.tokens[0, 0, : stopped.lengths[0, 0]])
    assert text == "The capital of France"


def lost_by(logits, tokens):
    """How far the tokens' logits are below the best at their positions, at most."""
    logits = logits[: len(tokens)]
    return (logits.max(-1) - np.take_along_axis(logits, tokens[:, None], -1)[:, 0]).max()


@pytest.mark.slow
def test_real_prompts_match_transformers(smollm2, oracle, texts):
    """50 real prompts with greedy replies of 64 tokens: we are as near to the oracle in float64 as itself in float32,
    on whatever processor, and each token is its best, to that error. Its norms and rotations are in float32 always."""
    import torch

    prompts = [encode(smollm2.tokenizer, t)[:48] for t in texts[:: len(texts) // 50][:50]]
    assert len(prompts) == 50
    options = {"max_new_tokens": 64, "key": jax.random.key(0), "temperature": 0.0, "stop_ids": ()}
    out = generate(smollm2, smollm2.params, prompts, **options)
    apply, exact = jax.jit(smollm2.apply), torch.nn.Module.double(copy.deepcopy(oracle))
    worst = np.zeros(3)
    for start in range(0, 50, 10):
        group = range(start, start + 10)
        whole, mask = np.zeros((2, 10, max(map(len, prompts)) + 64), int)
        for row, i in enumerate(group):
            text = [*prompts[i], *out.tokens[i, 0]]
            whole[row, : len(text)], mask[row, : len(text)] = text, 1
        batch = {"input_ids": torch.as_tensor(whole), "attention_mask": torch.as_tensor(mask)}
        with torch.no_grad():
            want, theirs = (model(**batch, use_cache=False).logits.numpy() for model in (exact, oracle))
        ours, real = np.asarray(apply(smollm2.params, jnp.asarray(whole))), mask.astype(bool)
        lost = [lost_by(want[row, len(prompts[i]) - 1 :], out.tokens[i, 0]) for row, i in enumerate(group)]
        errors = (np.abs(ours - want)[real].max(), np.abs(theirs - want)[real].max(), max(lost))
        worst = np.maximum(worst, errors)
    print("\noff float64: ours {:.2e}, transformers {:.2e}; lost by a greedy token {:.2e}".format(*worst))
    assert worst[0] < 3 * worst[1] and worst[1] < 1e-3
    assert worst[2] < 2 * worst[0]


@pytest.mark.slow
def test_saved_smollm2_is_the_same_for_transformers(smollm2, oracle, tmp_path, texts):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_pretrained(smollm2, smollm2.params, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    sample = texts[:300]
    assert tokenizer(sample)["input_ids"] == smollm2.tokenizer(sample)["input_ids"]
    template = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(QUESTION, **template) == (
        smollm2.tokenizer.apply_chat_template(QUESTION, **template)
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.as_tensor([encode(smollm2.tokenizer, sample[0])[:32]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, oracle(ids).logits, atol=1e-4, rtol=0)
    ours = load_model(tmp_path)
    np.testing.assert_array_equal(ours.params["embed"], smollm2.params["embed"])
    assert ours.tokenizer(sample)["input_ids"] == smollm2.tokenizer(sample)["input_ids"]


def test_command_line_completes_files_and_streams(smollm2, tmp_path, capsys):
    from pairgrpo_jax.commands.generate import Args, complete, read_prompts, reply

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a colour."}\n{"prompt": "Hi"}\n')
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    files = {"prompts": tmp_path / "prompts.jsonl", "out": tmp_path / "out.jsonl"}
    complete(smollm2, Args(max_new_tokens=12, num_samples=2, batch_size=2, **files), prompts)
    lines = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [x["prompt"] for x in lines] == prompts and all(len(x["replies"]) == 2 for x in lines)
    ids = encode_chat(smollm2.tokenizer, QUESTION)
    text = reply(smollm2, Args(max_new_tokens=16, temperature=0.0), ids, jax.random.key(0))
    assert text == "The capital of France is Paris." and text in capsys.readouterr().out
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl:1"):
        read_prompts(tmp_path / "bad.jsonl")
