"""Logits and greedy text equal `transformers` (torch, float32), family by family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import load_model, save_pretrained
from .conftest import CASES, config_fields, torch_model

TOLERANCE = 2e-4


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


@pytest.mark.parametrize(("family", "index"), CASES)
def test_logits_match_transformers(family, index, tmp_path):
    oracle, model = pair(family, index, tmp_path)
    rng = np.random.default_rng(index)
    tokens = rng.integers(3, 97, (3, 48))
    lengths = np.array([48, 17, 29])
    want = [oracle_logits(oracle, tokens[i : i + 1, :n])[0] for i, n in enumerate(lengths)]
    got = model.apply(model.params, jnp.asarray(tokens), lengths=jnp.asarray(lengths))
    for i, n in enumerate(lengths):
        assert np.abs(want[i]).max() > 0.5, "the oracle's logits are trivial"
        np.testing.assert_allclose(got[i, :n], want[i], atol=TOLERANCE, rtol=0)
    # Left padding, told by positions alone.
    left = np.full((3, 48), -1)
    shifted = np.zeros((3, 48), np.int64)
    for i, n in enumerate(lengths):
        left[i, 48 - n :], shifted[i, 48 - n :] = np.arange(n), tokens[i, :n]
    got = model.apply(model.params, jnp.asarray(shifted), positions=jnp.asarray(left))
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(got[i, 48 - n :], want[i], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("family", "index"), CASES)
def test_saved_model_loads_in_transformers(family, index, tmp_path):
    from transformers import AutoModelForCausalLM

    oracle, model = pair(family, index, tmp_path)
    save_pretrained(model, model.params, tmp_path / "out", max_shard_bytes=100_000)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens = np.random.default_rng(0).integers(3, 97, (2, 20))
    ours = np.asarray(model.apply(model.params, jnp.asarray(tokens)))
    np.testing.assert_allclose(oracle_logits(again, tokens), ours, atol=1e-4, rtol=0)
    ours_again = load_model(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, ours_again.params, model.params))
