#!/usr/bin/env bash
# optax.inject_hyperparams makes NaN of Adam's first step where parameters are bfloat16: it rounds b2 to 1.
# Guess: inject_hyperparams(adam)(1e-3) is adam(1e-3) whose learning rate can be read and set; on bfloat16 parameters at worst the learning
#   rate is rounded, by 0.4%.
# Truth (optax 0.2.8, jax 0.10.2): every float argument becomes an array of the widest dtype among the parameters, those that nobody named
#   too. 0.999 is 1 in bfloat16 (0.9961 is next), so the second moment stays 0 and is divided by 1 - 1: NaN in all weights
#   after one update with finite gradients. float16 turns eps = 1e-8 into 0, so that a zero gradient gives NaN, with plain adam as well. One
#   float32 leaf anywhere, a norm's scale or a value head, and all is well; b2=0.995 runs, as 0.9961. hyperparam_dtype=float32 keeps the
#   numbers; static_args for all but the rate does so for Adam's.
# Who: bfloat16 fine-tuning with a logged, scheduled or hand-set rate, and a unit test of it with float32 weights: passes, and so
#   does a model with one float32 leaf. (Known: google-deepmind/optax issue 1414, which shows b2 = 1 and asks for the declared dtype.)
# Seen: plain -0.001, injected NaN, with one float32 leaf -0.001, hyperparam_dtype -0.001.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, optax
print("optax", optax.__version__, "jax", jax.__version__)

def first(name, optimiser, dtype=jnp.bfloat16, grad=0.1, head=False):
    """What one update adds to a weight of 1 whose gradient is `grad`."""
    params = {"w": jnp.ones(3, dtype)} | ({"head": jnp.ones(1, jnp.float32)} if head else {})
    grads = jax.tree.map(lambda p: jnp.full_like(p, grad), params)
    updates, state = jax.jit(optimiser.update)(grads, optimiser.init(params), params)
    held = {k: round(float(v), 5) for k, v in getattr(state, "hyperparams", {}).items() if k in ("learning_rate", "b2", "eps")}
    print(f"{name:36s} {float(updates['w'][0]):.5f} {held}")
    return float(updates["w"][0]), held

inject = optax.inject_hyperparams
near = lambda found: abs(found[0] + 1e-3) < 3e-5
assert near(first("adam", optax.adam(1e-3)))
injected = first("inject_hyperparams(adam)", inject(optax.adam)(1e-3))
assert np.isnan(injected[0]) and injected[1]["b2"] == 1.0
assert np.isnan(first("inject_hyperparams(adamw)", inject(optax.adamw)(1e-3))[0])
assert near(first("the same, one leaf is float32", inject(optax.adam)(1e-3), head=True))
assert near(first("the same, all float32", inject(optax.adam)(1e-3), dtype=jnp.float32))
found = first("b2=0.995", inject(optax.adam)(1e-3, b2=0.995))
assert near(found) and found[1]["b2"] == 0.99609
assert near(first("hyperparam_dtype=float32", inject(optax.adam, hyperparam_dtype=jnp.float32)(1e-3)))
assert near(first("static_args", inject(optax.adam, static_args=("b1", "b2", "eps", "eps_root"))(1e-3)))
half = dict(dtype=jnp.float16, grad=0.0)
assert np.isnan(first("float16, a gradient of 0", inject(optax.adam)(1e-3), **half)[0])
assert np.isnan(first("the same, plain adam", optax.adam(1e-3), **half)[0])
assert first("the same, hyperparam_dtype", inject(optax.adam, hyperparam_dtype=jnp.float32)(1e-3), **half)[0] == 0
EOP
