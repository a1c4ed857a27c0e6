#!/usr/bin/env bash
# jax.nn.initializers shrink weights that are stacked over layers.
# Guess: lecun_normal()(key, (12, 64, 64)) is twelve 64x64 matrices of deviation 1/8.
# Truth (jax 0.10.2): every leading axis counts into fan-in (a convolution's receptive field), so the deviation is 1/8/sqrt(12);
#   orthogonal makes one tall matrix, whose 64x64 blocks are not orthogonal and shrink a vector's norm by sqrt(12) each.
#   A signal dies over the layers. batch_axis=0 (or vmap over the keys) gives what was meant.
# Who: layers as one array for lax.scan, stacked LoRA factors, ensembles of reward models or critics: the deeper the stack or the
#   larger the ensemble, the smaller each member starts.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import math
import jax, jax.numpy as jnp
from jax.nn import initializers as init
print("jax", jax.__version__)
L, D, key = 12, 64, jax.random.key(0)
x = jax.random.normal(jax.random.key(1), (D,))

def through(w):
    return float(jnp.linalg.norm(jax.lax.scan(lambda h, m: (h @ m, None), x, w)[0]) / jnp.linalg.norm(x))

def vmapped(f):
    return jax.vmap(lambda k: f(k, (D, D)))(jax.random.split(key, L))

cases = {
    "lecun_normal, stacked shape": init.lecun_normal()(key, (L, D, D)),
    "lecun_normal, batch_axis=0": init.lecun_normal(batch_axis=(0,))(key, (L, D, D)),
    "lecun_normal, vmap over keys": vmapped(init.lecun_normal()),
    "orthogonal, stacked shape": init.orthogonal()(key, (L, D, D)),
    "orthogonal, vmap over keys": vmapped(init.orthogonal()),
}
gain = {}
for name, w in cases.items():
    gain[name] = through(w)
    print(f"{name:30s} deviation {float(w.std()):.4f} (1/8 = 0.125), norm after {L} layers: {gain[name]:.1e}")
ratio = float(cases["lecun_normal, batch_axis=0"].std() / cases["lecun_normal, stacked shape"].std())
assert abs(ratio - math.sqrt(L)) < 0.1, ratio
assert gain["lecun_normal, stacked shape"] < 1e-4 and gain["orthogonal, stacked shape"] < 1e-4
assert gain["lecun_normal, vmap over keys"] > 0.1 and abs(gain["orthogonal, vmap over keys"] - 1) < 1e-3
EOF
