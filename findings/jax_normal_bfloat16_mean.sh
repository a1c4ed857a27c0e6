#!/usr/bin/env bash
# jax.random.normal in bfloat16 has a mean below zero, and jax.random.bernoulli of a bfloat16 probability knows 128 probabilities.
# Guess: normal(key, shape, jnp.bfloat16) is the float32 draw, rounded: each number is off by 0.4% at most, in either direction, so the mean is
#   0. bernoulli(key, p) is true with probability p, whose own rounding is the only error.
# Truth (jax 0.10.2): the uniform numbers behind both are drawn in bfloat16, as multiples of a step (1/128 of their range) that start at the
#   lower end and leave out the upper one. So normal takes 128 values from -2.89 to 2.52 and has mean -0.012: a million of them add up to
#   -12000, where chance gives 1000. float16 has 1024 values and -0.002. bernoulli is true with p rounded UP to the next 1/128: 0.0001 becomes
#   0.0078, and from 0.9942 on (rounded, 0.9961) it is always true. A float32 draw that is rounded afterwards has neither.
# Who: preference labels drawn from sigmoid(reward difference) of a bfloat16 model: a clear loser wins up to 80 times too often, a clear winner
#   always. Perturbations of bfloat16 weights (evolution strategies, exploration): all of them share a direction, -0.012 for every weight, which
#   for a million weights is 12 deviations along their sum. Draw in float32 and cast; give bernoulli a float32 p.
# Seen, means of a million: -0.0121, -0.0137, -0.0112; rounded float32: -0.0008, 0.0005, 0.0007. bernoulli of 0.001 and 0.997: 0.0078 and 1.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np
print("jax", jax.__version__, "numpy", np.__version__)
COUNT = 1_000_000
keys = jax.random.split(jax.random.key(0), 3)

def normals(name, draw):
    drawn = [np.asarray(draw(key).astype(jnp.float32), np.float64) for key in keys]
    means, values = [x.mean() for x in drawn], np.unique(np.concatenate(drawn))
    print(f"normal, {name:20s} means of 3 keys", *(f"{m:8.4f}" for m in means), f" values {len(values):7d} from {values[0]:.2f} to {values[-1]:.2f}")
    return means, values

means, values = normals("bfloat16", lambda key: jax.random.normal(key, (COUNT,), jnp.bfloat16))
assert max(means) < -0.009 and min(means) > -0.015 and len(values) == 128 and values[0] < -2.8 and 2.4 < values[-1] < 2.6
means, values = normals("float16", lambda key: jax.random.normal(key, (COUNT,), jnp.float16))
assert np.mean(means) < -0.0005 and len(values) == 1024
means, values = normals("float32", lambda key: jax.random.normal(key, (COUNT,)))
assert abs(np.mean(means)) < 0.003
means, values = normals("float32 as bfloat16", lambda key: jax.random.normal(key, (COUNT,)).astype(jnp.bfloat16))
assert abs(np.mean(means)) < 0.003 and values[-1] > 4.5

for p in (0.0001, 0.001, 0.01, 0.1, 0.9, 0.99, 0.993, 0.997):
    rates = {dtype: float(jax.random.bernoulli(keys[0], dtype(p), (COUNT,)).mean()) for dtype in (jnp.bfloat16, jnp.float32)}
    low, full = rates[jnp.bfloat16], rates[jnp.float32]
    up = np.ceil(128 * float(jnp.bfloat16(p))) / 128
    print(f"bernoulli of {p:6.4f}: bfloat16 {low:.4f} (next 128th: {up:.4f}), float32 {full:.4f}")
    assert abs(low - up) < 0.003 and abs(full - p) < 0.003
assert low == 1 and full < 1
EOP
