#!/usr/bin/env bash
# brax's training wrapper restarts every episode of an environment from the very same state.
# Guess: after done, AutoResetWrapper draws a new random start, as gymnasium's vector environments do.
# Truth (brax 0.14.2, jax 0.10.2): it keeps the state of the first reset and returns to it, so n environments see n starts in the whole
#   run. The same actions replay bit for bit the same episode. And EpisodeWrapper counts steps in rng.shape[:-1]: given
#   typed keys (jax.random.key) the counter is a scalar, and the first step fails inside vmap; only PRNGKey arrays work.
# Who: HalfCheetah in brax: reset noise covers n_envs starts instead of thousands, a few-env run or evaluation repeats
#   itself, and preference pairs of "two episodes" from one environment compare the same start.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q brax==0.14.2 jax==0.10.2 jaxlib==0.10.2 mujoco==4.0.0
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np
from brax import envs
from brax.envs.wrappers import training
print("brax", version("brax"), "jax", jax.__version__)
env = training.wrap(envs.get_environment("halfcheetah", backend="positional"), episode_length=3)
reset, step = jax.jit(env.reset), jax.jit(env.step)
action = 0.3 * jnp.ones((2, env.action_size))
state = reset(jax.random.split(jax.random.PRNGKey(0), 2))
first, starts, episodes, rewards = np.asarray(state.obs), [], [], []
for t in range(9):
    state = step(state, action)
    rewards.append(np.asarray(state.reward))
    if bool(state.done[0]):
        starts.append(float(np.abs(np.asarray(state.obs) - first).max()))
        episodes.append(np.stack(rewards)); rewards = []
same = all(np.array_equal(e, episodes[0]) for e in episodes)
print("distance of each new start from the first one:", starts, "| rewards of the", len(episodes), "episodes bit-equal:", same)
print("the two environments differ from each other by", float(np.abs(first[0] - first[1]).max()))
assert starts == [0.0, 0.0, 0.0] and same and not np.array_equal(first[0], first[1])
typed = reset(jax.random.split(jax.random.key(0), 2))
try:
    step(typed, action)
    raise SystemExit("typed keys work now")
except ValueError as error:
    print("typed keys: info['steps'] has shape", typed.info["steps"].shape, "->", str(error)[:70], "...")
EOF
