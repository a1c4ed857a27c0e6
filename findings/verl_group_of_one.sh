#!/usr/bin/env bash
# verl: a reply that is alone in its group learns from its raw reward, under GRPO and under one of the two RLOOs; under the other it learns nothing.
# Guess: relative to its group it is neither better nor worse: advantage 0, in all of them, or an error. The vectorised estimators are the
#   same ones, faster.
# Truth (verl 0.9.1): compute_grpo_outcome_advantage and its vectorised form take mean 0 and standard deviation 1 for a group of one, so a
#   reward of 1 is an advantage of 1, beside 0.58 for a right reply among three. compute_rloo_outcome_advantage does so too,
#   compute_rloo_vectorized_outcome_advantage gives 0.
# Who: groups from which replies were dropped (overlong, failed tools, filters) and rollout.n = 1: with rewards of 0 and 1 every lone right
#   reply is pushed up, and never one down; and changing the estimator's name changes what is learnt.
# Known: no issue found; SkyRL 0.3.0, by reading, gives 0 in RLOO with a warning, and the raw reward in GRPO.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 ray==2.60.0 omegaconf==2.4.0 codetiming==1.4.0 dill==0.4.1 packaging==26.4 transformers==5.10.0
"$tmp/v/bin/pip" install -q --no-deps verl==0.9.1 tensordict==0.10.0 pyvers==0.2.3 orjson==3.13.0 cloudpickle==3.1.3 importlib_metadata==10.2.0 zipp==4.1.2
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import numpy as np, torch
from verl.trainer.ppo import core_algos
print("verl", version("verl"), "torch", torch.__version__)
rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # five replies of two tokens
groups = np.array(["three", "three", "three", "right alone", "wrong alone"])
found = {}
for name in ("grpo", "grpo_vectorized", "rloo", "rloo_vectorized"):
    advantages, _ = core_algos.get_adv_estimator_fn(name)(rewards.clone(), torch.ones(5, 2), groups)
    found[name] = [round(x, 2) for x in advantages[:, 0].tolist()]
    print(f"{name:16s}", dict(zip(("right", "wrong", "right ", *groups[3:].tolist()), found[name])))
assert [x[3] for x in found.values()] == [1, 1, 1, 0] and [x[4] for x in found.values()] == [0, 0, 0, 0]
assert found["grpo"][:3] == [0.58, -1.15, 0.58] and found["rloo"][:3] == found["rloo_vectorized"][:3] == [0.5, -1.0, 0.5]
EOP
