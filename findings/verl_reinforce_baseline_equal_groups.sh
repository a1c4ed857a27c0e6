#!/usr/bin/env bash
# verl's REINFORCE++-baseline teaches from groups in which all rewards are equal: all-wrong replies are pushed up where wrong replies are long.
# Guess: each reply's reward less the mean of its group, then divided by the batch's deviation. A group of equal rewards says nothing and has
#   advantage 0, as under GRPO and RLOO; taking off the batch's mean once more changes nothing, as that mean is 0 already.
# Truth (verl 0.9.1): the second mean is taken over tokens, not over replies, and is not 0 unless length and reward are unrelated. Where wrong
#   replies are longer than right ones, as is usual, it is negative, and every token of the batch is lifted by as much: with one group of
#   lengths 10 (right), 100, 100, 100 (wrong), two groups of 100 tokens a reply, all wrong and all right, have advantage +0.45 throughout, a third of
#   what a wrong reply of the first group has against it. With right replies longer it is -0.42 instead, for the all-right group too. With equal lengths it is 0.
#   Nothing warns, and critic/advantages/mean is 0 all along.
# Who: algorithm.adv_estimator=reinforce_plus_plus_baseline, where groups of equal rewards are most of a batch on hard or on solved prompts: their
#   replies are reinforced, or unlearnt, at random with the lengths of other prompts' replies; comparisons with GRPO count that in.
#   Drop such groups first, as filter_groups does. OpenRLHF 0.11.2's reinforce_baseline takes its second mean over tokens too (by reading, not run).
# Seen: the table below.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 ray==2.60.0 omegaconf==2.4.0 codetiming==1.4.0 dill==0.4.1 packaging==26.4 transformers==5.10.0
"$tmp/v/bin/pip" install -q --no-compile --no-deps verl==0.9.1 tensordict==0.10.0 pyvers==0.2.3 orjson==3.13.0 cloudpickle==3.1.3 importlib_metadata==10.2.0 zipp==4.1.2
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

print("verl", version("verl"), "torch", torch.__version__)
GROUPS = np.repeat(["mixed", "all wrong", "all right"], 4)
REWARDS = [1.0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def advantages(estimator, lengths):
    """Of the 12 replies, the reward on the last token of each."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    rewards = torch.zeros_like(mask)
    rewards[torch.arange(12), torch.tensor(lengths) - 1] = torch.tensor(REWARDS)
    found, _ = get_adv_estimator_fn(estimator)(token_level_rewards=rewards, response_mask=mask, index=GROUPS, config=AlgoConfig())
    assert all(len(set(row[keep > 0].tolist())) == 1 for row, keep in zip(found, mask))  # one advantage for the whole of a reply
    return found[:, 0], (found * mask).sum() / mask.sum()


LENGTHS = {"wrong ones longer": [10, 100, 100, 100] + [100] * 8, "all alike": [100] * 12, "right one longer": [100, 10, 10, 10] + [50] * 8}
print(f"{'lengths':18s} {'estimator':30s} mixed: right, wrong   all wrong   all right   mean over tokens")
got = {}
for title, lengths in LENGTHS.items():
    for estimator in ("grpo", "rloo", "reinforce_plus_plus_baseline"):
        found, mean = advantages(estimator, lengths)
        right, wrong, none, every = got[title, estimator] = [round(found[i].item(), 2) for i in (0, 1, 4, 8)]
        assert len(set(found[1:4].tolist())) == len(set(found[4:8].tolist())) == len(set(found[8:].tolist())) == 1
        print(f"{title:18s} {estimator:30s} {right:6.2f} {wrong:12.2f} {none:11.2f} {every:11.2f} {mean:14.2f}")
        if estimator != "reinforce_plus_plus_baseline":
            assert none == every == 0
ours = {title: got[title, "reinforce_plus_plus_baseline"] for title in LENGTHS}
assert ours["wrong ones longer"] == [6.0, -1.4, 0.45, 0.45] and ours["right one longer"] == [2.03, -1.23, -0.42, -0.42]
assert ours["all alike"] == [3.0, -1.0, 0.0, 0.0]
EOP
