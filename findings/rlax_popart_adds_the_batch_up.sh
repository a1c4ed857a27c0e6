#!/usr/bin/env bash
# rlax's PopArt adds the whole batch up in one step: with step_size=0.01 it is right at 32 targets, and NaN at 256.
# Guess: popart keeps moving averages, as in its papers: step_size is the weight of the new batch's mean, whatever the batch's size, and a
#   larger batch only makes the statistics quieter.
# Truth (rlax 0.1.9, jax 0.10.2): each target moves shift and second moment by step_size times its distance from them, and these are summed,
#   over the batch and with axis_name over devices too. 128 targets are a step of 1.28, past the mean; from 200 on the step
#   overshoots by more than it came, shift and second moment swing ever wider, the scale sits at its lower bound in between, where
#   the layer's weights are blown up to keep its outputs, and then all is NaN. With several tasks it is the number of targets of each that
#   counts, so the task that comes most is the one that breaks. No warning, and no error before the NaN. Divide step_size by the targets.
# Who: PopArt with a learner's batch of time x environments (20 x 32 is 640), another number of devices or environments, or a task seen
#   more often; the papers' step of 3e-4 breaks at 6,667 targets. Learning rates tuned with one batch size mean another in the next.
# Seen, targets from N(5, 2), 600 steps, shift and scale by batch: 1, 32 and 128 targets 4.89 to 4.94 and 1.88 to 2.07; 256 and
#   640 NaN; 640 with step_size / 640 4.99 and 2.02; 224 targets of one task and 32 of another: NaN, and 5.16 and 2.01.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile rlax==0.1.9 distrax==0.1.9 chex==0.1.92 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 \
    tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" -W ignore - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np, rlax
print("rlax", version("rlax"), "jax", jax.__version__)
MEAN, DEVIATION, STEPS, STEP_SIZE = 5.0, 2.0, 600, 0.01

def follow(batch, step_size=STEP_SIZE, tasks=None):
    """Shift and scale, and the largest weight of the layer, after STEPS batches."""
    tasks = jnp.zeros(batch, int) if tasks is None else tasks
    initial, update = rlax.popart(int(tasks.max()) + 1, step_size, 1e-4, 1e6)
    params, state, rng, update = {"w": jnp.ones((4, int(tasks.max()) + 1)), "b": jnp.zeros(int(tasks.max()) + 1)}, initial(), np.random.default_rng(0), jax.jit(update)
    for _ in range(STEPS):
        params, state = update(params, state, jnp.asarray(rng.normal(MEAN, DEVIATION, batch), jnp.float32), tasks)
    return np.array([state.shift, state.scale, jnp.abs(params["w"]).max(0)])

def right(found):
    return (np.abs(found[:2] - np.array([[MEAN], [DEVIATION]])) < 0.5).all(0)

for batch in (1, 32, 128, 256, 640):
    found = follow(batch)
    print(f"{batch:4d} targets: shift, scale, largest weight", *found[:, 0].round(2))
    assert right(found)[0] == (batch <= 128) and np.isfinite(found).all() == (batch <= 128), (batch, found)
found = follow(640, STEP_SIZE / 640)
print("640 targets, step_size / 640: shift, scale, largest weight", *found[:, 0].round(2))
assert right(found)[0]
found = follow(256, tasks=jnp.asarray(np.arange(256) < 32, jnp.int32))
print("256 targets, 224 of one task and 32 of another: shift, scale, largest weight", *(found[:, i].round(2) for i in range(2)))
assert not right(found)[0] and right(found)[1]
EOP
