#!/usr/bin/env bash
# The overlong penalty of Tunix's DAPO counts characters, while its lengths are given in tokens: short replies are fined.
# Guess: overlong_buffer_length and max_response_length ("hard maximum generation length") are tokens, as in DAPO (arXiv 2503.14476, eq. 13) and
#   as the generation that they bound: a reply of 20 tokens in a budget of 100 with a buffer of 20 gets 0.
# Truth (google-tunix 0.1.7): reward_shaping, which DAPOLearner appends to the rewards, takes len() of the decoded text. Twenty words of five
#   characters are 100: they get the whole penalty, -1, five words more get -2.25, for nothing bounds it below, where the paper's
#   formula stops at -1. With the defaults (20,480 and 4,096) the fine begins at 16,384 characters, some 4,000 tokens of English.
# Who: DAPO with Tunix: replies are taught to be a quarter as long as was asked, least where a tokenizer packs most characters into a token.
# Known: no issue found. dynamic_sampling=True in the same config is read by nothing (marked as to do in its source).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q google-tunix==0.1.7 jax==0.10.2 flax==0.12.8 numpy==2.4.6 qwix==0.1.8 orbax-checkpoint==0.12.8
cd "$tmp"; JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
from tunix.rl.grpo.dapo_learner import DAPOConfig, reward_shaping
print("google-tunix", version("google-tunix"))
print("default", DAPOConfig().overlong_buffer)
budget = {"enable": True, "overlong_buffer_length": 20, "overlong_buffer_penalty": 1.0, "max_response_length": 100}
DAPOConfig(overlong_buffer=budget)  # accepted
found = {}
for words in (10, 16, 18, 20, 25):
    reply = "word " * words
    found[words] = reward_shaping(["p"], [reply], None, overlong_buffer=budget)[0]
    print(f"{words} words, {len(reply)} characters, of 100 with a buffer of 20: {found[words] + 0}")
assert found == {10: 0, 16: 0, 18: -0.5, 20: -1.0, 25: -2.25}
EOP
