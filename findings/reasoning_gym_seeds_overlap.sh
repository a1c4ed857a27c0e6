#!/usr/bin/env bash
# reasoning-gym: neighbouring seeds give the same problems, shifted by one.
# Guess: seed=42 for training and seed=43 for evaluation are independent draws.
# Truth (reasoning-gym 0.1.25): item i is made from the seed seed + i, so seed 43's item i is seed 42's item i+1: two sets of
#   500 share 499 questions, answers included. To be disjoint, seeds must lie further apart than the sizes.
# Who: held-out evaluation, "three seeds" of a benchmark, and data-parallel workers with seed + rank: the test set is
#   the training set, and the spread over seeds measures nothing.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q reasoning-gym==0.1.25
"$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
import reasoning_gym
print("reasoning-gym", version("reasoning-gym"))
size = 500
for task in ("leg_counting", "countdown", "spell_backward", "basic_arithmetic", "number_sorting"):
    made = {s: [r["question"] for r in reasoning_gym.create_dataset(task, size=size, seed=s)] for s in (42, 43, 42 + size)}
    near, far = (sum(q in set(made[42]) for q in made[s]) for s in (43, 42 + size))
    shifted = made[42][1:] == made[43][:-1]
    print(f"{task:17s} of {size} questions of seed 43, {near} are in seed 42's set (shifted by one: {shifted}); of seed {42 + size}'s: {far}")
    assert shifted and near >= size - 1 and far < near
EOF
