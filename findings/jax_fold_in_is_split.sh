#!/usr/bin/env bash
# jax.random.fold_in(key, i) is the same key as jax.random.split(key, n)[i], and the key checker lets both be used.
# Guess: split and fold_in are two ways to get new keys, and what they give for one key is different; jax_debug_key_reuse, made to find
#   keys that are used twice, would tell if not.
# Truth (jax 0.10.2): they are the same function, on purpose since jax_threefry_partitionable (jax-ml/jax pull request 13341; the default
#   by now; with False they differ): split(key, n)[i] == fold_in(key, i) for every n > i. A different shape does not help: normal(key, (3,))
#   begins normal(key, (2, 4)). The checker does not count fold_in as a use of its key, and calls the two results different keys.
# Who: one key per run or problem that is split for weights and environments, and folded with a step, an epoch, a row or a constant for
#   "one more" stream: the exploration noise of step 0 is the initial weights, reward noise is the policy's own logits. Results look random,
#   reproduce, and are correlated. Give the second use a key of its own from the split.
# Seen: four equal keys; noise of steps 0 and 1 == initial weights and goal: True, True; found by the checker: nothing.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np
print("jax", jax.__version__, "partitionable", jax.config.jax_threefry_partitionable)

def equal(impl="threefry2x32"):
    key = jax.random.key(7, impl=impl)
    data = lambda k: np.asarray(jax.random.key_data(k))
    return [bool((data(jax.random.split(key, n)[i]) == data(jax.random.fold_in(key, i))).all()) for n, i in ((2, 0), (2, 1), (5, 1), (5, 4))]

now = equal()
with jax.threefry_partitionable(False):
    before = equal()
print("split(key, n)[i] == fold_in(key, i):", now, "rbg:", equal("rbg"), "not partitionable:", before)
assert all(now) and all(equal("rbg")) and not any(before)

def train(key):
    """Weights and a goal from a split, noise from fold_in with the step: a common form."""
    weight_key, goal_key = jax.random.split(key)
    weights, goal = jax.random.normal(weight_key, (2, 4)), jax.random.normal(goal_key, (3,))
    noise = jax.lax.map(lambda step: jax.random.normal(jax.random.fold_in(key, step), (6,)), jnp.arange(4))
    return weights, goal, noise

with jax.debug_key_reuse(True):
    weights, goal, noise = jax.jit(train)(jax.random.key(0))  # raises KeyReuseError where it finds a key used twice
    jax.random.normal(k := jax.random.key(0))
    try:
        jax.random.normal(k)
        found = False
    except jax.errors.KeyReuseError:
        found = True  # it does work
print("noise of step 0 == weights:", noise[0], weights.ravel()[:6])
print("noise of step 1 == goal:", noise[1][:3], goal)
assert (noise[0] == weights.ravel()[:6]).all() and (noise[1][:3] == goal).all() and found
many = [jax.jit(train)(jax.random.key(seed)) for seed in range(100)]
r = lambda step: np.corrcoef([float(n[step, 0]) for w, g, n in many], [float(w[0, 0]) for w, g, n in many])[0, 1]
print(f"correlation of noise and weights over 100 seeds: step 0 {r(0):.2f}, step 2 {r(2):.2f}")
assert r(0) > 0.999 and abs(r(2)) < 0.5
EOP
