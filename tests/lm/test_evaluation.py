"""Held-out figures: what an evaluation compiles, and what it leaves in memory."""

import dataclasses
import gc
import weakref

import jax
import numpy as np
import pytest

from pairgrpo_jax.lm import Policy, Sampling
from pairgrpo_jax.lm.alignment import EncodedPair, EncodedPrompt
from pairgrpo_jax.lm.alignment.evaluation import implicit_margins, judge_replies, write_replies
from pairgrpo_jax.lm.models.params import init_params
from pairgrpo_jax.lm.rewards.reward_model import init_head
from pairgrpo_jax.lm.rewards.reward_training import pair_features

PROMPTS = [EncodedPrompt((), ids) for ids in ([5, 6, 7], [8, 9])]
PAIRS = [EncodedPair([5, 6], [7, 8], [9, 10, 11]), EncodedPair([5], [7], [9])]


def evaluation(model, seed, temperature=0.7):
    """All figures of a policy and a reference that only this call knows, and its policy's parameters."""
    params, other = (init_params(model.config, jax.random.key(s)) for s in (seed, seed + 1))
    policy, reference = (Policy(dataclasses.replace(model, params=p), p) for p in (params, other))
    sampling, limits = Sampling(temperature), {"prompt_tokens": 4}
    replies = write_replies(policy, PROMPTS, completion_tokens=4, key=jax.random.key(0), sampling=sampling, samples=2)
    judged = judge_replies(reference, init_head(64), PROMPTS, replies, sampling=sampling, **limits)
    margins = implicit_margins(policy, reference, PAIRS, completion_tokens=4, **limits)
    pooled = pair_features(policy, PAIRS, ("mean",), batch=2)
    return (judged.ref_logp, margins, pooled), params


def test_a_second_evaluation_compiles_nothing_and_no_parameters_stay(tiny, compiles_nothing):
    first, params = evaluation(tiny, 0)
    with compiles_nothing():
        second, _ = evaluation(tiny, 2, temperature=0.9)
    assert all(np.abs(x - y).max() > 0 for x, y in zip(first, second))
    left = [weakref.ref(x) for x in jax.tree.leaves(params)]
    del params
    gc.collect()
    assert not any(x() is not None for x in left)


@pytest.mark.parametrize("with_head", [False, True])
def test_the_reference_is_scored_at_the_temperature_of_the_replies(tiny, with_head):
    """Where it wrote them itself, the KL to the start is 0, reply by reply."""
    policy, sampling = Policy(tiny, tiny.params), Sampling(0.7)
    replies = write_replies(policy, PROMPTS, completion_tokens=4, key=jax.random.key(0), sampling=sampling, samples=2)
    head = init_head(tiny.config.hidden_size) if with_head else None
    judged = judge_replies(policy, head, PROMPTS, replies, prompt_tokens=4, sampling=sampling)
    assert np.abs(replies.logp).max() > 0.1
    np.testing.assert_allclose(judged.ref_logp, replies.logp, atol=1e-4)
