#!/usr/bin/env bash
# Runs with seeds 0, 1, 2 of a vector environment share nearly all their initial states.
# Guess: reset(seed=0) and reset(seed=1) of 8 HalfCheetahs are 16 different starts.
# Truth (gymnasium 1.4.0, mujoco 4.0.0): sub-environment i is seeded with seed + i, and keeps that generator: environment i of run 1 is
#   environment i+1 of run 0 for all its episodes. Five "independent" runs of 8 have 12 streams of starts, not 40; an evaluation at
#   seed + 1 reuses 7 of 8 of the training streams. Space the seeds by the number of environments or pass a list.
# Who: confidence intervals over training seeds, held-out evaluation starts, paired comparisons of two runs.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q gymnasium==1.4.0 mujoco==4.0.0 imageio==2.38.1 packaging==26.3 numpy==2.4.6
cd "$tmp"; MUJOCO_GL=disable "$tmp/v/bin/python" - <<'EOF'
import gymnasium as gym, mujoco, numpy as np
print("gymnasium", gym.__version__, "mujoco", mujoco.__version__)
N = 8

def starts(seed, episodes=3):
    """The first observations of each sub-environment's first episodes."""
    envs = gym.make_vec("HalfCheetah-v5", num_envs=N, vectorization_mode="sync")
    first = [envs.reset(seed=seed)[0].copy()] + [envs.reset()[0].copy() for _ in range(episodes - 1)]
    envs.close()
    return {np.stack(f).tobytes() for f in zip(*first)}

near = [starts(s) for s in range(5)]
far = [starts(s * N) for s in range(5)]
listed = [starts([int(x) for x in np.random.default_rng(s).integers(2**31, size=N)]) for s in range(5)]
count = lambda runs: len(set().union(*runs))
print(f"seeds 0 and 1 share {len(near[0] & near[1])} of {N} environments, over 3 episodes each")
print(f"different environments in 5 runs of {N}: seeds 0..4 {count(near)}, seeds 0, {N}, ... {count(far)}, lists of seeds {count(listed)}")
assert len(near[0] & near[1]) == N - 1 and count(near) == N + 4
assert count(far) == count(listed) == 5 * N
EOF
