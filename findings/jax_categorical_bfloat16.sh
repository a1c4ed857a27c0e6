#!/usr/bin/env bash
# jax.random.categorical on bfloat16 logits does not sample softmax(logits).
# Guess: rounding bfloat16 logits moves each probability by about 1%.
# Truth (jax 0.10.2): the Gumbel noise is drawn in the dtype of the logits. Its bfloat16 version takes few
#   values, ends at 4.84 and ties often; argmax then takes the lowest id. Over 2048 equal tokens nearly every
#   draw falls in the first quarter of the vocabulary; a token of probability 0.5 is drawn more than 99% of the time.
# Who: anyone who samples rollouts from a policy that computes in bfloat16: the samples are far more peaked than
#   log_softmax of the same logits says, so entropies, ratios and KL to the reference belong to another policy.
# Remedy: logits.astype(float32) before the draw (values may stay rounded, the noise may not).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import jax, jax.numpy as jnp
print("jax", jax.__version__)
V, N, key = 2048, 4000, jax.random.key(0)
half = jnp.zeros(V).at[0].set(jnp.log(V - 1.0))  # token 0 has probability 0.5, the others share the rest

def draw(logits, dtype):
    return jax.random.categorical(key, jnp.broadcast_to(logits, (N, V)).astype(dtype))

rows = {}
for dtype in (jnp.float32, jnp.bfloat16):
    exact = half.astype(dtype).astype(jnp.float32)  # the very logits that are sampled, rounding included
    p0 = float(jax.nn.softmax(exact)[0])
    f0 = float((draw(half, dtype) == 0).mean())
    quarter = float((draw(jnp.zeros(V), dtype) < V // 4).mean())
    rows[dtype.__name__] = f0, quarter
    print(f"{dtype.__name__:9s} token 0: softmax {p0:.3f}, drawn {f0:.3f}; equal tokens: in the first quarter {quarter:.3f}")
cast = float((jax.random.categorical(key, jnp.broadcast_to(half.astype(jnp.bfloat16), (N, V)).astype(jnp.float32)) == 0).mean())
top = [float(jax.random.gumbel(key, (10**6,), d).max()) for d in (jnp.float32, jnp.bfloat16)]
print(f"bfloat16 logits cast to float32 for the draw: token 0 drawn {cast:.3f}; largest Gumbel of 1e6: {top}")
assert abs(rows["float32"][0] - 0.5) < 0.05 and abs(rows["float32"][1] - 0.25) < 0.05
assert rows["bfloat16"][0] > 0.98 and rows["bfloat16"][1] > 0.9
assert abs(cast - 0.5) < 0.05 and top[1] < 5 < 10 < top[0]
EOF
