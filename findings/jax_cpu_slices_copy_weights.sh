#!/usr/bin/env bash
# On a CPU a loop over stacked weights copies every weight matrix before its product, and unrolled all of them at once.
# Guess: w[i] of [L, D, F] weights is a view for the compiler, so that a scan over layers, the same loop unrolled in Python, and
#   L separate matrices take the same memory; unrolled is, if anything, the fastest.
# Truth (jax 0.10.2, XLA for CPU): the scan copies one layer in every step; unrolled, the slices are computed ahead and the
#   program needs a second copy of the whole model for each call, and took 2.5 to 4 times the time of the scan. Only separate
#   matrices are read where they lie.
# Who: whoever decodes token by token with stacked layers (Flax nn.scan, the usual form in JAX), where reading weights is the time,
#   or unrolls them to win it back; memory plans that count weights once.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import time, jax, jax.numpy as jnp
print("jax", jax.__version__)
L, R, D, F = 12, 8, 512, 1536
w, v = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(L, D, F), (L, F, D)]))
x = jax.random.normal(jax.random.key(2), (R, D))
layer = lambda x, a, b: jnp.tanh(jnp.tanh(x @ a) @ b)

def scanned(x, w, v):
    return jax.lax.scan(lambda x, ab: (layer(x, *ab), None), x, (w, v))[0]

def unrolled(x, w, v):
    for i in range(L):
        x = layer(x, w[i], v[i])
    return x

def separate(x, w, v):
    for a, b in zip(w, v):
        x = layer(x, a, b)
    return x

whole, one, extra, seconds = 4 * L * 2 * D * F, 4 * D * F, {}, {}
for f, args in ((scanned, (x, w, v)), (unrolled, (x, w, v)), (separate, (x, [*(w + 0)], [*(v + 0)]))):
    compiled = jax.jit(f).lower(*args).compile()
    extra[f.__name__] = compiled.memory_analysis().temp_size_in_bytes
    times = []
    for _ in range(30):
        start = time.perf_counter(); compiled(*args).block_until_ready(); times.append(time.perf_counter() - start)
    seconds[f.__name__] = min(times)
    print(f"{f.__name__:9} needs {extra[f.__name__] / whole:5.2f} of the weights beside them, {1e3 * min(times):.1f} ms")
assert extra["unrolled"] >= whole and one <= extra["scanned"] < 0.2 * whole and extra["separate"] < 0.01 * whole
EOF
