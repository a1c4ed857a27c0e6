#!/usr/bin/env bash
# The gradient of a bfloat16 embedding row stops growing at 256 uses of its token.
# Guess: token used 1000 times in a batch -> its row gets the sum of 1000 gradients (reductions accumulate in float32).
# Truth (jax 0.10.2, flax 0.12.8, CPU): jnp.sum does, but the backward of a gather is a scatter-add that adds one
#   at a time in bfloat16: 256 + 1 = 256. Rows of frequent tokens (spaces, BOS, chat markers, padding) get a quarter
#   of their gradient or less; float32 parameters do not help when nn.Embed(dtype=bfloat16) casts the table first.
#   segment_sum has the same ceiling, e.g. for per-sequence sums of packed log-probabilities.
# Who: full-weight alignment with a bfloat16 embedding; packed sequences summed by segment_sum.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import flax, flax.linen as nn, jax, jax.numpy as jnp
print("jax", jax.__version__, "flax", flax.__version__)
ids = jnp.zeros((10, 100), jnp.int32)  # one frequent token, 1000 times

def row(compute, param):
    table = {"params": {"embedding": jnp.zeros((4, 2), param)}}
    loss = lambda p: nn.Embed(4, 2, dtype=compute).apply(p, ids).astype(jnp.float32).sum()
    return float(jax.jit(jax.grad(loss))(table)["params"]["embedding"][0, 0])

f32, bf16 = jnp.float32, jnp.bfloat16
mixed, low, full = row(bf16, f32), row(bf16, bf16), row(f32, f32)
print("true gradient 1000; float32", full, "| bfloat16 table", low, "| float32 table, bfloat16 compute", mixed)
ones, seg = jnp.ones(1000, bf16), jnp.zeros(1000, jnp.int32)
total, packed = float(ones.sum()), float(jax.ops.segment_sum(ones, seg, 1)[0])
print("sum of 1000 bfloat16 ones:", total, "| segment_sum of the same:", packed)
onehot = float((jax.nn.one_hot(ids.ravel(), 4, dtype=bf16).T @ jnp.ones((1000, 2), bf16))[0, 0])
print("the same gradient as a one-hot product:", onehot)
assert full == 1000 and low == 256 and mixed == 256
assert total == 1000 and packed == 256 and onehot == 1000
EOF
