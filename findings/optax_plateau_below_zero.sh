#!/usr/bin/env bash
# reduce_on_plateau never lowers the learning rate while the value that it watches is negative, even if it gets worse.
# Guess: contrib.reduce_on_plateau fed with minus the mean reward (or a win rate's negative, or a policy-gradient loss) lowers the rate
#   once that has stopped falling, as it does for a loss above 0: only differences matter.
# Truth (optax 0.2.8, jax 0.10.2): better means below best * (1 - rtol), and for a best of -100 that is
#   -99.99, a worse value. Standing still is an improvement each time, and a fall of the reward by less than rtol of itself replaces the
#   best by the worse one, so that it may go on for ever: from 100 to 80 here. The same numbers plus a constant that makes them positive
#   do lower the rate. rtol=0 with an atol compares differences.
# Who: preference RL and RLHF, where what is watched is a reward, a return, a log-likelihood or -win rate: the schedule is never applied,
#   without a word, or starts at the point where the reward changes its sign.
# Known: google-deepmind/optax, pull request 1767 (open); pytorch/pytorch#47513.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, optax
print("optax", optax.__version__, "jax", jax.__version__)

def run(name, values, **options):
    """The factor on the learning rate after these values; and the "best" of them."""
    schedule = optax.contrib.reduce_on_plateau(factor=0.5, patience=5, **options)
    update = jax.jit(lambda state, value: schedule.update(jnp.ones(1), state, value=value)[1])
    state = schedule.init(jnp.ones(1))
    for value in values:
        state = update(state, jnp.float32(value))
    print(f"{name:56s} learning rate times {float(state.scale):.4f}; best {float(state.best_value):.2f}")
    return float(state.scale), float(state.best_value)

still, falling = np.full(60, 100.0), np.linspace(100.0, 80.0, 4000)
assert run("reward stays at 100, watched as -reward", -still)[0] == 1
assert run("the same plus 1000", 1000 - still)[0] < 0.01
scale, best = run("reward falls from 100 to 80, watched as -reward", -falling)
assert scale == 1 and abs(best + 80) < 0.1
scale, best = run("the same plus 1000", 1000 - falling)
assert scale < 0.01 and best == 900
assert run("reward stays at -100, watched as -reward", still)[0] < 0.01
assert run("reward stays at 100, rtol=0, atol=0.01", -still, rtol=0.0, atol=0.01)[0] < 0.01
scale, best = run("reward falls from 100 to 80, rtol=0, atol=0.01", -falling, rtol=0.0, atol=0.01)
assert scale < 0.01 and best == -100
EOF
