#!/usr/bin/env bash
# On a CPU with bfloat16 instructions a bfloat16 product is fast only if its result is float32.
# Guess: bfloat16 operands decide how a product runs; that the result comes out in bfloat16 too can only save memory, and its gradient
#   is made of the same products.
# Truth (jax 0.10.2, XLA for CPU, avx512_bf16): with a bfloat16 result both operands are widened first, and the float32 product runs; with
#   preferred_element_type=float32 the bfloat16 one does, 2 times as fast, and a cast afterwards costs nothing. The gradient of that mixes a float32
#   slope with a bfloat16 operand, and is widened again: it takes a rule of one's own to round the slope.
# Who: whoever runs a model in bfloat16 on a CPU (x @ w of bfloat16 arrays is what every layer library writes): no faster than float32.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || { echo "skipped: this processor does not multiply bfloat16"; exit 0; }
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import time, jax, jax.numpy as jnp
print("jax", jax.__version__)
a = jax.random.normal(jax.random.key(0), (1024, 768)).astype(jnp.bfloat16)
b = jax.random.normal(jax.random.key(1), (768, 1536)).astype(jnp.bfloat16)
wide = lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
forms = {
    "result bfloat16": jnp.matmul,
    "result float32, then cast": lambda a, b: wide(a, b).astype(jnp.bfloat16),
    "gradient of the second": jax.grad(lambda a, b: jnp.square(wide(a, b)).sum()),
}
widened, seconds = {}, {}
for name, f in forms.items():
    compiled = jax.jit(f).lower(a, b).compile()
    text = compiled.as_text()
    widened[name] = "f32[768,1536]" in text and "convert" in text.split("ENTRY")[1]
    compiled(a, b).block_until_ready(); times = []
    for _ in range(20):
        start = time.perf_counter(); compiled(a, b).block_until_ready(); times.append(time.perf_counter() - start)
    seconds[name] = min(times)
    print(f"{name}: b widened to float32: {widened[name]}, {1e3 * min(times):.1f} ms")
assert list(widened.values()) == [True, False, True] and seconds["result float32, then cast"] < 0.8 * seconds["result bfloat16"]
EOP
# Seen (AMD EPYC family 25 model 17, 2 cores beside other programs): True 22.8 ms, False 14.3 ms, True 35.2 ms; quiet, of 1408 x 576 x 1536: 200 and 405 GFLOP/s.
