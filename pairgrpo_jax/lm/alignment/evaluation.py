"""Held-out figures: replies of two policies to the same prompts, judged; and how a policy ranks labelled pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from pairgrpo_jax.lm.alignment.batch import Batch, EncodedPrompt, ended, pair_batch
from pairgrpo_jax.lm.data import EncodedPair, pad_texts
from pairgrpo_jax.lm.models.generation import generate, row_keys
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.models.scoring import Policy, score
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, score_and_reward
from pairgrpo_jax.methods import Dpo, Likelihoods, Method
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.placement import filled_up, put_rows


class Replies(NamedTuple):
    """S replies to each of N prompts.

    Attributes:
      tokens: `[N,S,T]`.
      lengths: `[N,S]`.
      logp: `[N,S]`, under the policy that wrote them, at the sampling transform.
      ended: `[N,S]` bool, stopped by themselves.
      texts: N lists of S strings, special tokens left out.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logp: np.ndarray
    ended: np.ndarray
    texts: list[list[str]]


class Judged(NamedTuple):
    """What a reward head and the reference say of replies: rewards, None without one, and log-probabilities `[N,S]`."""

    rewards: np.ndarray | None
    ref_logp: np.ndarray


def write_replies(
    policy: Policy,
    prompts: Sequence[EncodedPrompt],
    *,
    completion_tokens: int,
    key: jax.Array,
    sampling: Sampling,
    samples: int = 1,
    batch: int = 16,
    rows: NamedSharding | None = None,
) -> Replies:
    """Samples replies to each prompt; a reply depends on its own key alone, so two policies can share keys.

    Args:
      policy: who writes.
      prompts: N of them.
      completion_tokens: T.
      key: of all replies.
      sampling: the transform of the distribution.
      samples: S.
      batch: prompts at a time.
      rows: splits these over the devices of a mesh; needed where the policy lives on one. The next functions' too.
    """
    model, keys = policy.model, row_keys(key, len(prompts), samples)

    def write(index: np.ndarray):
        out = generate(
            model,
            policy.params,
            [prompts[i].ids for i in index.tolist()],
            max_new_tokens=completion_tokens,
            key=keys[index],
            num_samples=samples,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            lora=policy.lora,
            rows=rows,
        )
        return out.tokens, out.lengths, out.logp

    tokens, lengths, logp = in_batches(write, len(prompts), _batch(batch, len(prompts), rows))
    return Replies(tokens, lengths, logp.sum(-1), ended(model, tokens, lengths), _texts(model, tokens, lengths))


def _batch(batch: int, count: int, rows: NamedSharding | None) -> int:
    """At most `batch` of `count` rows at a time, rounded up so that each device has as many."""
    devices = 1 if rows is None else rows.num_devices
    return filled_up(min(batch, count), devices)


def in_batches(run: Callable[[np.ndarray], Sequence], count: int, batch: int) -> list[np.ndarray]:
    """Calls `run(index [batch])` until all of `count` rows are done; returns its arrays, joined, `[count, ...]`.

    The last batch is filled up with the first rows, so that one shape compiles.
    """
    parts = [
        [processes.fetch(x)[: count - start] for x in run(np.arange(start, start + batch) % count)]
        for start in range(0, count, batch)
    ]
    return [np.concatenate(x) for x in zip(*parts)]


def _texts(model: Model, tokens: np.ndarray, lengths: np.ndarray) -> list[list[str]]:
    def text(ids: list[int]) -> str:
        return str(ids) if model.tokenizer is None else model.tokenizer.decode(ids, skip_special_tokens=True)

    return [[text(row[:n].tolist()) for row, n in zip(*group)] for group in zip(tokens, lengths)]


def judge_replies(
    reference: Policy,
    head: RewardHead | None,
    prompts: Sequence[EncodedPrompt],
    replies: Replies,
    *,
    prompt_tokens: int,
    sampling: Sampling,
    batch: int = 16,
    rows: NamedSharding | None = None,
) -> Judged:
    """The reference's log-probabilities of replies and, with a head, rewards, in one pass of the reference."""

    def run(index: np.ndarray):
        texts = pad_texts([prompts[i].ids for i in index.tolist()], prompt_tokens)
        part = put_rows(Batch(*texts, replies.tokens[index], replies.lengths[index]), rows)
        return _logp_and_rewards(reference.model.skeleton, *reference[1:], head, part, sampling)

    logp, *rewards = in_batches(run, len(prompts), _batch(batch, len(prompts), rows))
    return Judged(rewards[0] if rewards else None, logp)


@functools.partial(jax.jit, static_argnums=0)
def _logp_and_rewards(model: Model, params, lora, head: RewardHead | None, batch: Batch, sampling: Sampling):
    policy = Policy(model, params, lora)
    if head is None:
        return [score(policy, *batch.tokens, sampling=sampling).logp.sum(-1)]
    scores, rewards = score_and_reward(policy, head, *batch.tokens, sampling=sampling)
    return [scores.logp.sum(-1), rewards]


def implicit_margins(
    policy: Policy,
    reference: Policy,
    pairs: Sequence[EncodedPair],
    *,
    prompt_tokens: int,
    completion_tokens: int,
    method: Method | None = None,
    batch: int = 16,
    rows: NamedSharding | None = None,
) -> np.ndarray:
    """`[N]`: by how much the policy favours the chosen reply over the rejected, by the method's implicit reward.

    By default that is the log-ratio to the reference, in nats.
    """
    models, how = (policy.model.skeleton, reference.model.skeleton), method or Dpo()

    def run(index: np.ndarray):
        part = pair_batch([pairs[i] for i in index.tolist()], prompt_tokens, completion_tokens)
        return [_margins(models, how, (policy[1:], reference[1:]), put_rows(part, rows))]

    return in_batches(run, len(pairs), _batch(batch, len(pairs), rows))[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _margins(models: tuple[Model, Model], method: Method, variables: tuple, part: Batch) -> jax.Array:
    ours, ref = (score(Policy(m, *v), *part.tokens).logp for m, v in zip(models, variables))
    reward = method.implicit_reward(Likelihoods(ours, ref_logp=ref, mask=part.mask))
    return reward[:, 0] - reward[:, 1]
