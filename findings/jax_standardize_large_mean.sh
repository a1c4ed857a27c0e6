#!/usr/bin/env bash
# jax.nn.standardize and flax LayerNorm divide by the wrong deviation once the mean is large.
# Guess: four returns near 5000 standardise to about [-0.4, 0.4, -1.3, 1.3] like they do near 0 (float32 holds them exactly).
# Truth (jax 0.10.2, flax 0.12.8): the variance is mean(x*x) - mean(x)**2, clipped at 0. Near 5000 it cancels to 0 and
#   epsilon alone divides: values up to 474 instead of 1.3, no warning. jnp.var of the same numbers is right.
#   flax's LayerNorm does the same by default (linen and nnx, use_fast_variance=True): +-750 at mean 3000.
# Who: advantages of HalfCheetah returns (thousands) through jax.nn.standardize; residual streams with an offset.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import flax, flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from flax import nnx
print("jax", jax.__version__, "flax", flax.__version__)
spread = jnp.array([0.0, 1.0, -1.0, 2.0])
worst = {}
for mean in (0.0, 100.0, 1000.0, 5000.0):
    x = mean + spread  # exact in float32
    right = (x - x.mean()) / jnp.sqrt(jnp.var(x) + 1e-5)
    got = jax.nn.standardize(x)
    worst[mean] = float(jnp.abs(got).max())
    print(f"returns near {mean:6.0f}: standardize {np.round(got, 3)}, by jnp.var {np.round(right, 3)}")
    assert float(jnp.abs(right).max()) < 1.4
assert worst[0.0] < 1.4 and worst[100.0] < 1.4 and worst[5000.0] > 100
h = 3000.0 + 0.5 * jnp.arange(4.0)[None]
unit = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
linen, slow = nn.LayerNorm().apply(unit, h), nn.LayerNorm(use_fast_variance=False).apply(unit, h)
module = nnx.LayerNorm(4, rngs=nnx.Rngs(0))(h)
print("LayerNorm near 3000: linen", linen[0], "nnx", module[0], "linen, use_fast_variance=False", np.round(slow[0], 3))
assert abs(float(linen[0, 0])) > 100 and abs(float(module[0, 0])) > 100 and abs(float(slow[0, 0])) < 1.4
EOF
