#!/usr/bin/env bash
# rlax's episodic novelty reward (Never Give Up, Agent57) is one constant for every state once embeddings are closer than 0.03 on average.
# Guess: episodic_memory_intrinsic_rewards divides the distances to the k nearest memories by their running mean, so that the scale of the
#   embedding hardly counts; `constant` only keeps the division safe. A state far from all others earns more than one seen before.
# Truth (rlax 0.1.9, jax 0.10.2): the distances are taken from a field that holds them with a minus. Numerator and mean are both negative, and the
#   minus cancels, but for the constant: -d / (-mean + 1e-3). A mean of squared distances well above 1e-3 gives what one expects, near 1e-3
#   the rewards are too large, and below it every ratio is negative, is cut to 0, and each state is taken for k copies of itself: reward
#   1 / (sqrt(k) + 1e-3), whether it was seen before or lies five times further out than any. With a plus the same formula
#   keeps its order there. As the mean runs over all steps, one episode of small distances is enough for some time. No warning, no NaN.
# Who: NGU and Agent57 made of rlax's parts: learnt embeddings are often small at the start, or shrink under weight decay; the bonus is
#   then a constant, "exploration does not help", while its mean looks sound.
# Seen, 200 random states, k = 10, by mean squared distance (new states, one seen before, one five times further out): 1.3: 24 to 32, 1.00, 117;
#   1.2e-3: 50 to 71, 1.00, 212; 5.4e-4: 0.32, 0.32, 0.32 (with a plus 14 to 19, 1.00, 74).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile rlax==0.1.9 distrax==0.1.9 chex==0.1.92 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
    tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np, rlax
print("rlax", version("rlax"), "jax", jax.__version__)
STATES, SIZE, K = 200, 32, 10

def formula(states, sign):
    """The rewards by numpy in float64, distances with the given sign: +1 as in the papers, -1 as in rlax."""
    memory, total, count, rewards = [np.zeros(states.shape[1])] * K, 0.0, 0, []
    for state in states:
        nearest = sign * np.sort(((np.array(memory) - state) ** 2).sum(1))[:K]
        total, count = total + nearest.sum(), count + K
        rate = np.maximum(nearest / (total / count + 1e-3) - 8e-3, 0)
        rewards.append(1 / (np.sqrt((1e-4 / (rate + 1e-4)).sum()) + 1e-3))
        memory = list(np.concatenate([states[:len(rewards)], np.zeros((max(K - len(rewards), 0), states.shape[1]))]))  # rlax begins with K zeros
    return np.array(rewards)

step = jax.jit(lambda x, state: rlax.episodic_memory_intrinsic_rewards(x, K, 1.0, state, max_memory_size=256))
random = np.random.default_rng(0).normal(size=(STATES, SIZE)) / np.sqrt(SIZE)
for scale in (1.0, 0.1, 0.03, 0.02, 0.01):
    states = np.concatenate([scale * random, scale * random[50:51], 5 * scale * random[51:52]])  # the last two: one again, and one far out
    rewards, state = [], None
    for x in states:
        x = jnp.asarray(x[None], jnp.float32)
        reward, state = rlax.episodic_memory_intrinsic_rewards(x, K, 1.0, None, max_memory_size=256) if state is None else step(x, state)
        if len(rewards) == STATES - 1:
            mean = abs(float(state.distance_sum / state.distance_count))
        rewards.append(float(reward[0]))
    rewards, paper, minus = np.array(rewards), formula(states, 1), formula(states, -1)
    late = slice(STATES // 2, STATES)
    print(f"scale {scale}: mean squared distance {mean:.1e}; new states {rewards[late].min():.2f} to {rewards[late].max():.2f}, seen before {rewards[-2]:.2f},",
        f"far out {rewards[-1]:.2f}; with a plus {paper[late].min():.2f} to {paper[late].max():.2f}, {paper[-2]:.2f}, {paper[-1]:.2f}")
    assert np.allclose(rewards[late], minus[late], rtol=0.02), (rewards[late], minus[late])
    if mean < 9e-4:
        assert np.allclose(rewards[late.start:], 1 / (np.sqrt(K) + 1e-3), rtol=1e-4), rewards[late.start:]
        assert paper[-1] > 3 * paper[late].max() and paper[late].min() > 2 * paper[-2], paper[-3:]
    elif mean > 0.01:
        assert np.allclose(rewards[late], paper[late], rtol=0.2) and rewards[-2] < rewards[late].min() < rewards[-1]
    else:
        assert (rewards[late] > 1.2 * paper[late]).all()
EOP
