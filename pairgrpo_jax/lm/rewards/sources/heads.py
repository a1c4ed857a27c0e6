"""Sources of rewards: a reward model, for texts."""

import jax
import numpy as np

from pairgrpo_jax.lm.data import Prompt, encode_prompt, encode_reply, pad_texts
from pairgrpo_jax.lm.models.scoring import Policy
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, reward
from pairgrpo_jax.lm.rewards.sources.interface import Judgement, Source, group_shape
from pairgrpo_jax.training import processes


def head_source(policy: Policy, head: RewardHead, *, prompt_tokens: int = 384, reply_tokens: int = 256) -> Source:
    """Makes a source of a reward model, for texts; with tokens at hand, `reward_model.score_and_reward` is shorter.

    A prompt whose last turn alone is longer than `prompt_tokens` fails its group; longer replies are cut.

    Args:
      policy: the trunk that the head was trained on, frozen or with adapters.
      head: the reward head.
      prompt_tokens: longer prompts lose their oldest turns.
      reply_tokens: longer replies lose their end.
    """

    params, lora = processes.local((policy.params, policy.lora))  # each process judges other texts

    @jax.jit
    def run(params, lora, tokens):
        return reward(Policy(policy.model, params, lora), head, *tokens)

    def source(prompts: list[Prompt], completions: list[list[str]]) -> Judgement:
        groups, size = group_shape(prompts, completions)
        ids = [encode_prompt(policy.model, prompt, prompt_tokens) for prompt in prompts]
        failed = np.array([x is None for x in ids])
        if failed.all():
            return Judgement(np.zeros((groups, size), np.float32), None, failed)
        filler = next(x for x in ids if x is not None)
        replies = [encode_reply(policy.model, text, reply_tokens) for group in completions for text in group]
        tokens, lengths = pad_texts(replies)
        shaped = (tokens.reshape(groups, size, -1), lengths.reshape(groups, size))
        values = np.asarray(run(params, lora, (*pad_texts([x or filler for x in ids]), *shaped)))
        return Judgement(np.where(failed[:, None], 0.0, values).astype(np.float32), None, failed)

    return source
