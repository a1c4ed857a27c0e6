#!/usr/bin/env bash
# On a CPU a product that names its algorithm, BF16_BF16_F32, is the float32 product.
# Guess: precision="BF16_BF16_F32" (jax.lax.DotAlgorithmPreset) rounds float32 operands to bfloat16 wherever it is accepted, and raises
#   where a platform has no such product: its documentation speaks of a "contract"; likewise jax.default_matmul_precision("bfloat16").
# Truth (jax 0.10.2, XLA for CPU): accepted without a word, kept in the compiled program's text, and ignored: every bit is that of the
#   float32 product. Only operands that are cast by hand are rounded.
# Who: whoever tries a TPU's or GPU's precision on a CPU first, or tests in CI that a model survives it: nothing was tested. And whoever
#   hopes for the speed of a processor with avx512_bf16.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp
print("jax", jax.__version__)
a, b = (jax.random.normal(jax.random.key(i), (256, 256)) for i in range(2))
plain = jnp.matmul(a, b)
products = {"BF16_BF16_F32": jax.jit(lambda a, b: jnp.matmul(a, b, precision="BF16_BF16_F32"))}
text = products["BF16_BF16_F32"].lower(a, b).compile().as_text()
print("named in the compiled program:", "algorithm=dot_bf16_bf16_f32" in text)
with jax.default_matmul_precision("bfloat16"):
    default = jax.jit(jnp.matmul)(a, b)
named = products["BF16_BF16_F32"](a, b)
cast = jnp.matmul(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
differ = {name: float(jnp.abs(x - plain).max()) for name, x in (("named", named), ("default", default), ("cast by hand", cast))}
print("largest difference from the float32 product:", differ)
assert "algorithm=dot_bf16_bf16_f32" in text and differ["named"] == differ["default"] == 0 and differ["cast by hand"] > 0.05
EOP
# Seen: named in the compiled program: True; differences 0.0, 0.0 and about 0.2.
