#!/usr/bin/env bash
# optax.adafactor moves a zero-initialised LoRA B hundreds of times less than A.
# Guess: an explicit learning rate is the step size (as with adam), for every matrix alike.
# Truth (optax 0.2.8): the update is also multiplied by max(rms(parameter), 1e-3), on by default. LoRA starts B at zero, so
#   its first steps are learning_rate / 1000; A gets learning_rate * rms(A). The product B@A, all that the model sees, hardly moves.
# Who: LoRA alignment that picks adafactor to save memory, with an adam learning rate: a flat run that looks like a
#   bad reward. Give multiply_by_parameter_scale=False (or a rate about 1000 times larger).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import jax, jax.numpy as jnp, optax
print("jax", jax.__version__, "optax", optax.__version__)
k = jax.random.split(jax.random.key(0), 3)
start = {"A": jax.random.normal(k[0], (64, 8)) / 8, "B": jnp.zeros((8, 64))}
x, target = jax.random.normal(k[1], (256, 64)), 0.3 * jax.random.normal(k[2], (64, 64))
loss = lambda p: jnp.mean((x @ p["A"] @ p["B"] - x @ target) ** 2)

def train(name, opt, steps=200):
    p, state, first = start, opt.init(start), None
    @jax.jit
    def step(p, state):
        u, state = opt.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, u), state
    for _ in range(steps):
        p, state = step(p, state)
        first = first if first is not None else float(jnp.abs(p["B"]).max())
    kept = float(loss(p) / loss(start))
    print(f"{name:33s} first move of B {first:.1e}; loss after {steps} steps: {kept:.3f} of the start")
    return first, kept

rate = 1e-2
adam = train("adam", optax.adam(rate))
scaled = train("adafactor", optax.adafactor(rate))
plain = train("adafactor, no parameter scale", optax.adafactor(rate, multiply_by_parameter_scale=False))
assert scaled[0] < 2e-5 and adam[0] > 5e-3 and plain[0] > 5e-3
assert scaled[1] > 0.9 and adam[1] < 0.9 and plain[1] < 0.9
EOF
