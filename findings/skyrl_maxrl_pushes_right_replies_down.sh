#!/usr/bin/env bash
# SkyRL's MaxRL pushes the right replies down where rewards are -1 and 1, as its own AIME environment gives them.
# Guess: MaxRL divides a reply's advance over its group by the group's success rate instead of by the deviation: another scale for each prompt,
#   the larger the harder it is, and the same sign. Rewards of -1 and 1 say the same as 0 and 1.
# Truth (skyrl 0.3.0, skyrl-gym 0.4.0): the divisor is the mean of the rewards as they come, sign and all. With -1 and 1 it is negative
#   while less than half of a group is right: one right reply of 4 gets advantage -3 and the wrong ones +1 each, the exact
#   opposite of what 1 and 0 give. At exactly half right the divisor is the epsilon alone, and advantages are +-1,000,000. Scores of
#   a reward model that are all below 0 have the best reply pushed down. No check, no warning; GRPO and RLOO give the same
#   signs for both kinds of reward.
# Who: trainer.algorithm.advantage_estimator=maxrl with the AIME environment, with a reward model, or with a KL or length penalty in
#   the reward: hard prompts, for which MaxRL is chosen, are the ones unlearnt. Rescale rewards to 0 and 1.
# Known: the paper assumes rewards of 0 and 1; a review in huggingface/trl#5026 asked that TRL's version say so. SkyRL's does not.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 ray==2.60.0 omegaconf==2.4.0 loguru==0.7.3 jaxtyping==0.3.9 pydantic==2.14.4 pandas==3.0.5
"$tmp/v/bin/pip" install -q --no-compile --no-deps skyrl==0.3.0 skyrl-gym==0.4.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import typing
import typing_extensions
typing.TypedDict = typing_extensions.TypedDict  # pydantic asks for it before Python 3.12
from importlib.metadata import version
import numpy as np
import torch
from skyrl.backends.skyrl_train.utils.ppo_utils import (compute_grpo_outcome_advantage, compute_maxrl_advantage,
                                                        compute_rloo_outcome_advantage)
from skyrl_gym.envs.aime.env import AIMEEnv
print("skyrl", version("skyrl"), "skyrl-gym", version("skyrl-gym"), "torch", torch.__version__)

def advantages(estimator, rewards):
    """Of replies to one prompt, of two tokens each, with the reward on the last."""
    tokens = torch.zeros(len(rewards), 2)
    tokens[:, -1] = torch.tensor(rewards)
    result, _ = estimator(tokens, torch.ones_like(tokens), index=np.zeros(len(rewards), int))
    return [round(x, 2) for x in result[:, 0].tolist()]

reply = [AIMEEnv(extras={"reward_model": {"ground_truth": "42"}}).step(text)["reward"] for text in ("Answer: 42", "Answer: 41")]
print("the AIME environment pays a right reply", reply[0], "and a wrong one", reply[1])
assert reply == [1.0, -1.0]
right, wrong = reply
GROUPS = {"1 of 4 right, 1 and 0": [1.0, 0.0, 0.0, 0.0], "1 of 4 right, AIME": [right, wrong, wrong, wrong],
          "2 of 4 right, AIME": [right, right, wrong, wrong], "3 of 4 right, AIME": [right, right, right, wrong],
          "reward model": [-1.0, -2.0, -3.0, -2.0]}
got = {}
for title, rewards in GROUPS.items():
    for name, estimator in (("maxrl", compute_maxrl_advantage), ("grpo", compute_grpo_outcome_advantage), ("rloo", compute_rloo_outcome_advantage)):
        got[title, name] = advantages(estimator, rewards)
        print(f"{title:24s} {name:6s} {got[title, name]}")
        if name != "maxrl":
            assert got[title, name][0] > 0
assert got["1 of 4 right, 1 and 0", "maxrl"] == [3, -1, -1, -1] and got["1 of 4 right, AIME", "maxrl"] == [-3, 1, 1, 1]
assert got["2 of 4 right, AIME", "maxrl"][0] > 9e5 and got["3 of 4 right, AIME", "maxrl"] == [1, 1, 1, -3]
assert got["reward model", "maxrl"] == [-0.5, 0, 0.5, 0]
EOP
