#!/usr/bin/env bash
# optax.masked does not freeze what its mask leaves out: those weights climb the loss, with a step of the whole gradient.
# Guess: masked(adam(lr), {"base": False, "lora": True}) trains the adapter and leaves the base weights as they are.
# Truth (optax 0.2.8, jax 0.10.2): where the mask is False the gradient itself is handed on as the update, with its own sign and no learning
#   rate, and apply_updates adds it. Base weights move by +gradient: uphill, and as far as with a rate of 1.
#   (adamw's own mask, of the weight decay, is harmless: there is an optimiser behind it.) They stay frozen with a second
#   masked(set_to_zero(), not mask), with optax.partition, or with optax.transforms.selective_transform, whose mask has True for "freeze".
# Who: LoRA, a value or reward head on a frozen trunk, a frozen embedding, written in JAX with one tree of parameters: the loss rises or
#   turns nan, or, with small gradients, only the "frozen" base drifts, and the reference made from it with the adapter off, too.
# Known: google-deepmind/optax#159; the documentation of masked says that the rest is passed through.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, optax
print("optax", optax.__version__, "jax", jax.__version__)
keys = jax.random.split(jax.random.key(0), 4)
start = {"base": jax.random.normal(keys[0], (8, 4)) / 8**0.5, "lora": {"a": jax.random.normal(keys[1], (8, 2)) / 8**0.5, "b": jnp.zeros((2, 4))}}
x, label = jax.random.normal(keys[2], (64, 8)), jax.random.randint(keys[3], (64,), 0, 4)
mask = {"base": False, "lora": True}
opposite = {"base": True, "lora": False}

def loss(p):
    return optax.softmax_cross_entropy_with_integer_labels(x @ (p["base"] + p["lora"]["a"] @ p["lora"]["b"]), label).mean()

def run(name, optimizer, steps=50):
    params, state = start, optimizer.init(start)
    for step in range(steps):
        gradient = jax.grad(loss)(params)
        update, state = optimizer.update(gradient, state, params)
        if step == 0:
            first = update["base"], gradient["base"]
        params = optax.apply_updates(params, update)
    moved = float(jnp.abs(params["base"] - start["base"]).max())
    print(f"{name:54s} loss {float(loss(start)):.2f} -> {float(loss(params)):7.2f}, base moved by up to {moved:.3f}")
    return first, moved, float(loss(params))

adam = optax.adam(1e-2)
(update, gradient), moved, end = run("masked(adam)", optax.masked(adam, mask))
print("the base's first update is its gradient:", bool((update == gradient).all()))
assert (update == gradient).all() and moved > 1 and end > 2 * float(loss(start))
for name, optimizer in {
    "masked(adam), then masked(set_to_zero) of the base": optax.chain(optax.masked(adam, mask), optax.masked(optax.set_to_zero(), opposite)),
    "partition": optax.partition({"train": adam, "freeze": optax.set_to_zero()}, {"base": "freeze", "lora": "train"}),
    "selective_transform(freeze_mask=the base)": optax.transforms.selective_transform(adam, freeze_mask=opposite),
}.items():
    _, moved, end = run(name, optimizer)
    assert moved == 0 and end < float(loss(start))
EOF
