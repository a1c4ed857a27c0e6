#!/usr/bin/env bash
# A group of equal rewards gets an advantage: the standard deviation of equal float32 numbers is not 0.
# Guess: (r - mean(r)) / (std(r) + 1e-8) is 0 when all rewards of a GRPO group are equal: no signal, no gradient.
# Truth (jax 0.10.2, numpy 2.4.6): 0.1 eight times has a float32 mean one unit off 0.1 and a std of 7e-9, so every member gets -0.43;
#   0.7 gives +0.86. Which values and sizes do it differs between jax and numpy. All members share the sign, so the policy
#   is pushed away from (or towards) whole groups that carried no preference. Rewards 0 and 1 and an epsilon of 1e-4 hide it.
# Who: group-relative methods with fractional rewards (format 0.1, partial credit 0.3) and a small epsilon.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import jax, jax.numpy as jnp, numpy as np
print("jax", jax.__version__, "numpy", np.__version__)
worst = {}
for name, xp in (("jax", jnp), ("numpy", np)):
    for size in (6, 8, 12, 16):
        for reward in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
            r = xp.full(size, reward, xp.float32)
            for eps in (1e-8, 1e-4):
                a = np.asarray((r - r.mean()) / (r.std() + xp.float32(eps)))
                assert (a == a[0]).all()
                worst[name, size, reward, eps] = float(a[0])
for name in ("jax", "numpy"):
    loud = {f"{s} x {r}": round(worst[name, s, r, 1e-8], 2) for n, s, r, e in worst if n == name and e == 1e-8 and abs(worst[n, s, r, e]) > 0.1}
    print(f"{name:5s} equal groups with an advantage (epsilon 1e-8): {loud}")
    assert loud
small = max(abs(v) for k, v in worst.items() if k[3] == 1e-4)
exact = max(abs(v) for k, v in worst.items() if k[2] in (0.5, 1.0))
print(f"largest with epsilon 1e-4: {small:.4f}; largest for rewards 0.5 and 1.0: {exact}")
assert small < 0.01 and exact == 0
centred = jnp.full(8, 0.1, jnp.float32)
centred = centred - centred[0]  # a shift by one member first makes equal groups exactly 0
print("shifted by the first member before the mean:", float(centred.mean()), float(centred.std()))
assert float(centred.std()) == 0
EOF
