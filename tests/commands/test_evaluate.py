"""What `pairgrpo evaluate` says of bad data and of a judge that may not fit."""

import json

import jax.numpy as jnp
import pytest

from pairgrpo_jax.commands import evaluate
from pairgrpo_jax.commands.evaluate import Evaluation, pair_accuracy
from pairgrpo_jax.lm.rewards.reward_model import DEFAULT, RewardHead, save_head

PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}


def accuracy(folder, rows, **options):
    """Of no model: all that is looked at comes before it."""
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return pair_accuracy(None, None, Evaluation("a", data=str(folder / "data.jsonl"), **options))


def test_only_data_of_prompts_alone_has_no_accuracy(tmp_path):
    assert accuracy(tmp_path, [{"prompt": "Why?"}, {"prompt": "How?"}]) == {}
    with pytest.raises(ValueError, match="jsonl:2: expected columns 'chosen' and 'rejected'"):
        accuracy(tmp_path, [PAIR, {"prompt": "How?"}])
    with pytest.raises(ValueError, match=r"no usable preference \(1 identical replies\)"):
        accuracy(tmp_path, [PAIR | {"rejected": "So."}])
    with pytest.raises(ValueError, match="scores must be two numbers"):
        accuracy(tmp_path, [{"prompt": "Why?", "text": ["So.", "No."], "score": ["high", "low"]}])
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        pair_accuracy(None, None, Evaluation("a", data="nowhere.jsonl"))


def test_a_judge_made_on_another_model_is_told(tmp_path, run_here):
    save_head(RewardHead(jnp.ones(32), jnp.zeros(()), DEFAULT), tmp_path / "head.safetensors", model="mine")
    words = ["--a", "nowhere", "--judge", tmp_path / "head.safetensors", "--reference", "nowhere"]
    warning = "head.safetensors was made on mine; is nowhere the same model?"
    assert warning in run_here(evaluate.main, *words).stderr
    evaluate.tell_other_model("mine", str(tmp_path / "head.safetensors"))
