#!/usr/bin/env bash
# HalfCheetah clips an action for the physics but charges for the unclipped one.
# Guess: an action of 3 on a Box(-1, 1) is refused or clipped, so it moves and costs like an action of 1.
# Truth (gymnasium 1.4.0 with mujoco 4.0.0, brax 0.14.2): it moves exactly like 1 (the motor's control range clips), and pays
#   0.1 * |a|**2 = 5.4 instead of 0.6 a step. Two segments with identical states get returns thousands apart over an episode.
# Who: unsquashed Gaussian policies: the reward ranks segments by noise that no observation shows, so preferences made from returns
#   cannot be predicted from states, and a preference model without actions sees label noise. Clip before step() (or squash),
#   and take the log-probability of what was stored.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q gymnasium==1.4.0 mujoco==4.0.0 imageio==2.38.1 packaging==26.3 brax==0.14.2 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; MUJOCO_GL=disable JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
from importlib.metadata import version
import gymnasium as gym, jax, jax.numpy as jnp, mujoco, numpy as np
from brax import envs
print("gymnasium", gym.__version__, "mujoco", mujoco.__version__, "brax", version("brax"))

def in_gymnasium(clip):
    env, rng = gym.make("HalfCheetah-v5"), np.random.default_rng(0)
    seen, total, run = [env.reset(seed=0)[0]], 0.0, 0.0
    for _ in range(200):
        a = rng.normal(scale=2.0, size=6).astype(np.float32)
        obs, reward, *_, info = env.step(np.clip(a, -1, 1) if clip else a)
        seen.append(obs); total += reward; run += info["reward_forward"]
    return np.array(seen), total, run

(raw, raw_return, raw_run), (cut, cut_return, cut_run) = in_gymnasium(False), in_gymnasium(True)
print(f"gymnasium, 200 steps of N(0, 2): observations equal {np.array_equal(raw, cut)}, forward reward {raw_run:.2f} and {cut_run:.2f}, "
      f"return unclipped {raw_return:.1f}, clipped {cut_return:.1f}")
assert np.array_equal(raw, cut) and raw_run == cut_run and raw_return < cut_return - 200
env = envs.get_environment("halfcheetah", backend="positional")
state, step = jax.jit(env.reset)(jax.random.PRNGKey(0)), jax.jit(env.step)
one, three = step(state, jnp.ones(6)), step(state, 3 * jnp.ones(6))
print(f"brax, one step of 1 and of 3: observations equal {bool((one.obs == three.obs).all())}, rewards {float(one.reward):.2f} and {float(three.reward):.2f}")
assert bool((one.obs == three.obs).all()) and abs(float(one.reward - three.reward) - 4.8) < 1e-4
EOF
