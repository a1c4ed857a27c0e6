#!/usr/bin/env bash
# A jax array of 4-bit integers is refused by the program that was compiled for it, depending on how it came to its device.
# Guess: what `jax.jit(f)` takes, `jax.jit(f).lower(x).compile()` takes as well; x.nbytes is what x occupies.
# Truth (jax 0.10.2, CPU): of equal uint4 arrays, one from jnp.asarray is taken, and one that device_put committed to the same device is
#   refused: "input layouts that disagree", sub_byte_element_size_in_bits 0 against 4. Plain jit takes both. And nbytes counts a byte an
#   element, where the compiled program's arguments have half: a plan of memory from nbytes says twice as much.
# Who: weights held as int4 or nf4 codes, placed on a device or mesh, and ahead-of-time compilation (to measure memory, or to
#   compile before weights are there).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, ml_dtypes, numpy as np
print("jax", jax.__version__)
codes = np.arange(8).astype(ml_dtypes.uint4)
plain, placed = jnp.asarray(codes), jax.device_put(codes, jax.devices()[0])
f = jax.jit(lambda c: c.astype(jnp.float32).sum())
print("jit:", float(f(plain)), float(f(placed)))
compiled = f.lower(plain).compile()
print("ahead of time, jnp.asarray:", float(compiled(plain)))
size = compiled.memory_analysis().argument_size_in_bytes
print("nbytes", plain.nbytes, "| the compiled program's argument", size)
assert float(f(placed)) == 28 and plain.nbytes == 2 * size
try:
    f.lower(placed).compile()(placed)
    raise SystemExit("taken now")
except ValueError as error:
    print("ahead of time, device_put:", " ".join(str(error).split())[:400])
    assert "sub_byte_element_size_in_bits" in str(error)
EOF
