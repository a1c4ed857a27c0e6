"""Logits and greedy text equal `transformers` (torch, float32), family by family."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import generate, load_model, save_pretrained
from pairgrpo_jax.lm.models.model import FAMILIES

from .conftest import CASES, FAMILY_CONFIGS, config_fields, torch_model

TOLERANCE = 2e-4
PROMPT, NEW = 32, 64


def pair(family, index, folder):
    """Returns the oracle and our model, loaded from the files the oracle saved."""
    fields = config_fields(family, index)
    oracle = torch_model(fields)
    oracle.save_pretrained(folder)
    # The original fields: the older spellings must be read too.
    (folder / "config.json").write_text(json.dumps(fields))
    return oracle, load_model(folder)


def oracle_logits(oracle, tokens) -> np.ndarray:
    import torch

    with torch.no_grad():
        return oracle(torch.as_tensor(np.asarray(tokens)), use_cache=False).logits.numpy()


def greedy_text(oracle, prompt) -> np.ndarray:
    """The oracle's greedy continuation, from full forward passes (no cache)."""
    import torch

    tokens = torch.as_tensor(prompt)[None]
    with torch.no_grad():
        for _ in range(NEW):
            step = oracle(tokens, use_cache=False).logits[:, -1].argmax(-1)
            tokens = torch.cat([tokens, step[:, None]], 1)
    return tokens.numpy()[0]


@pytest.mark.parametrize(("family", "index"), CASES)
def test_same_logits_and_greedy_text_as_transformers(family, index, tmp_path):
    from transformers import AutoModelForCausalLM

    oracle, model = pair(family, index, tmp_path)
    apply = jax.jit(model.apply)
    tokens = np.random.default_rng(index).integers(3, 97, (3, PROMPT + NEW))
    tokens[0] = greedy_text(oracle, tokens[0, :PROMPT])
    lengths = np.array([PROMPT + NEW, 17, 41])
    want = [oracle_logits(oracle, tokens[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    steps = np.broadcast_to(np.arange(PROMPT + NEW), tokens.shape)
    right = np.where(steps < lengths[:, None], steps, -1)
    got = np.asarray(apply(model.params, jnp.asarray(tokens), positions=jnp.asarray(right)))
    for i, n in enumerate(lengths):
        assert np.abs(want[i]).max() > 0.5, "the oracle's logits are trivial"
        np.testing.assert_allclose(got[i, :n], want[i], atol=TOLERANCE, rtol=0)
    # Given the same text so far, the same next token, 64 times: the greedy texts are equal. One row per prefix,
    # because dynamic rope scalings change all positions as a text grows.
    prefix = np.arange(PROMPT, PROMPT + NEW)
    seen = np.where(np.arange(PROMPT + NEW) < prefix[:, None], np.arange(PROMPT + NEW), -1)
    grown = apply(model.params, jnp.asarray(np.tile(tokens[0], (NEW, 1))), positions=jnp.asarray(seen))
    np.testing.assert_array_equal(np.asarray(grown)[np.arange(NEW), prefix - 1].argmax(-1), tokens[0, PROMPT:])

    def shift(x, fill):
        pairs = zip(x, lengths)
        return np.stack([np.concatenate([np.full(len(r) - n, fill), r[:n]]) for r, n in pairs])

    left = jnp.asarray(shift(right, -1))
    got = np.asarray(apply(model.params, jnp.asarray(shift(tokens, 0)), positions=left))
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(got[i, -n:], want[i], atol=TOLERANCE, rtol=0)
    # And back: `transformers` loads what we save.
    save_pretrained(model, model.params, tmp_path / "out", max_shard_bytes=100_000)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    again, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    resaved = oracle_logits(again, tokens[:1])[0]
    np.testing.assert_allclose(resaved, got[0], atol=1e-4, rtol=0)
    ours_again = load_model(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, ours_again.params, model.params))


@pytest.mark.parametrize(("family", "index"), [*((f, 0) for f in FAMILY_CONFIGS), ("smollm3", 3), ("phi3", 4)])
def test_generate_is_the_oracles_greedy_text(family, index, tmp_path):
    oracle, model = pair(family, index, tmp_path)
    prompts = [np.random.default_rng(i).integers(3, 97, n).tolist() for i, n in enumerate((5, 32))]
    key = jax.random.key(0)
    out = generate(model, model.params, prompts, max_new_tokens=NEW, key=key, temperature=0.0, stop_ids=())
    for i, prompt in enumerate(prompts):
        want = greedy_text(oracle, np.asarray(prompt))[len(prompt) :]
        np.testing.assert_array_equal(out.tokens[i, 0], want)


def test_no_torch_at_run_time(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import jax, jax.numpy as jnp\n"
        "import pairgrpo_jax.lm as lm\n"
        "assert not any(m == 'pairgrpo_jax.control' for m in sys.modules)\n"
        "from tests.lm.conftest import tiny_model\n"
        "m = tiny_model()\n"
        f"lm.save_pretrained(m, m.params, {str(tmp_path)!r})\n"
        f"m = lm.load_model({str(tmp_path)!r})\n"
        "lm.generate(m, m.params, [[5]], max_new_tokens=2, key=jax.random.key(0))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_of_models_has_a_row_and_a_command_for_every_family():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| [^|]+ \| `(\w+)` \|.*`python -m pytest tests/lm/test_parity\.py -k (\w+)` \|$", text, re.M)
    )
    assert set(rows) == set(FAMILIES) == set(FAMILY_CONFIGS)
    assert all(name == selected for name, selected in rows.items())
