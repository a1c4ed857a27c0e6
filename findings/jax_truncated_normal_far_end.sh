#!/usr/bin/env bash
# A truncated Gaussian policy whose mean lies 6 deviations outside the action range acts at the wrong end of that range.
# Guess: mean 1.6, deviation 0.1, actions in [-1, 1]: nearly all of what is left of the bell lies just below 1, so samples are about 0.98.
#   What float32 cannot resolve in the tail costs precision, and at worst all samples are 1.
# Truth (jax 0.10.2, tfp-nightly 0.26.0.dev20261027): jax.random.truncated_normal draws between the erf of both bounds and inverts it. At 6
#   deviations erf is 1 (or -1) at both, the inverse is infinite, and the infinity is clipped to the bound that is FARTHER from the mean: all
#   samples are -1. At 5 deviations most are right, and the outermost step of float32 sends one in 16 to the far end. Neither NaN nor a
#   warning. float64 does so at 9 deviations. tensorflow-probability's TruncatedNormal, in JAX, samples -1 as well, and its own log_prob of
#   that sample is 320 below that of 1. scipy's truncnorm is right.
# Who: bounded policies for control without a squash: the mean is not bounded, and with a deviation that is annealed 6 of them are a little
#   step beyond the limit, where control at full throttle wants to be: it turns into full reverse. Clip the mean into the range before
#   sampling, or squash.
# Known: jax-ml/jax#10951 (2022, open): bounds in the tail give wrong values.
# Seen, mean action at means 1.4, 1.5, 1.6: scipy 0.977, 0.981, 0.984; jax and tensorflow-probability 0.977, 0.863, -1.000.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1 tfp-nightly==0.26.0.dev20261027 setuptools==84.2.1
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, scipy
import tensorflow_probability.substrates.jax as tfp
from scipy.stats import truncnorm
print("jax", jax.__version__, "tensorflow-probability", tfp.__version__, "scipy", scipy.__version__)
COUNT, DEVIATION, key = 10000, 0.1, jax.random.key(0)

def by_jax(mean, dtype=jnp.float32):
    lower, upper = ((jnp.asarray(bound, dtype) - mean) / DEVIATION for bound in (-1, 1))
    return np.asarray(mean + DEVIATION * jax.random.truncated_normal(key, lower, upper, (COUNT,), dtype), float)

def by_scipy(mean):
    return truncnorm.rvs((-1 - mean) / DEVIATION, (1 - mean) / DEVIATION, mean, DEVIATION, size=COUNT, random_state=0)

seen = {}
for mean in (1.3, 1.4, 1.5, 1.51, 1.6, -1.6):
    policy = tfp.distributions.TruncatedNormal(mean, DEVIATION, -1.0, 1.0)
    actions = {"scipy": by_scipy(mean), "jax": by_jax(mean), "tfp": np.asarray(policy.sample(COUNT, seed=key), float)}
    seen[mean] = {name: (float(a.mean()), float((np.sign(mean) * a < -0.99).mean())) for name, a in actions.items()}
    print(f"mean {mean:5.2f}:", "; ".join(f"{n} mean action {m:6.3f}, {100 * far:5.1f}% at the far end" for n, (m, far) in seen[mean].items()))
for mean, found in seen.items():
    right, side = found["scipy"][0], np.sign(mean)
    assert 0.96 < side * right < 1 and found["scipy"][1] == 0
    for name in ("jax", "tfp"):
        got, far = found[name]
        if abs(mean) <= 1.4:
            assert far < 0.005 and abs(got - right) < 0.01, (mean, name)
        elif abs(mean) >= 1.6:
            assert far == 1 and side * got < -0.99, (mean, name)
    if 1.5 <= mean < 1.6:
        assert 0.03 < found["jax"][1] < 0.3, found
policy = tfp.distributions.TruncatedNormal(1.6, DEVIATION, -1.0, 1.0)
drawn, limit = (float(policy.log_prob(x)) for x in (policy.sample(seed=key), 1.0))
print(f"tfp, mean 1.6: log_prob of its own sample {drawn:.0f}, of 1 {limit:.1f}")
assert limit - drawn > 300
with jax.enable_x64(True):
    wide = {mean: float(by_jax(mean, jnp.float64).mean()) for mean in (1.6, 1.9)}
print("jax in float64:", {mean: round(x, 3) for mean, x in wide.items()})
assert wide[1.6] > 0.96 and wide[1.9] < -0.99
EOP
