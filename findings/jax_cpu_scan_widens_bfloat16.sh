#!/usr/bin/env bash
# On a CPU a lax.scan over a stack of bfloat16 weights makes a float32 copy of the whole stack, and rounds each layer's part back.
# Guess: weights kept in bfloat16 take half the memory, a layer's slice is a copy of bytes, and on a processor that multiplies bfloat16
#   (avx512_bf16, AMX) the product takes the slice as it is.
# Truth (jax 0.10.2): XLA's CPU compiler slices bfloat16 in float32, so that the conversion moves in front of the loop: temporary
#   memory is twice the size of the weights (three times as much as the weights alone in all), and every step of every layer reads
#   float32 and rounds it. The same stack as uint16, whose slice is bitcast to bfloat16, takes none of that and gives the same numbers.
#   float16, which looks like the same case, is sliced as it is.
# Who: decode loops and score passes of scanned language models (flax nn.scan, MaxText-like layers, Tunix) with bfloat16 weights on a CPU:
#   where memory is counted from the weights, a model that should fit does not.
# Seen (MiB of temporary memory beside 32 MiB of weights, 16 layers of 1024 x 1024): bfloat16 66, as uint16 2; float16 4.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOP'
import jax, jax.numpy as jnp, numpy as np
print("jax", jax.__version__, "jaxlib", jax.lib.__version__)
LAYERS, D, MIB = 16, 1024, 2**20
x = jax.random.normal(jax.random.key(0), (4, D))
w = jax.random.normal(jax.random.key(1), (LAYERS, D, D)) / D**0.5

def layer(x, w):
    y = jax.lax.dot_general(x.astype(w.dtype), w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return jnp.tanh(y), None

def scanned(x, stack, read=lambda w: w):
    return jax.lax.scan(lambda x, w: layer(x, read(w)), x, stack)[0]

def compiled(f, stack):
    program = jax.jit(f).lower(x, stack).compile()
    return np.asarray(program(x, stack)), program.memory_analysis().temp_size_in_bytes / MIB, program.as_text()

whole = f"f32[{LAYERS},{D},{D}]"
seen = {}
for dtype in (jnp.bfloat16, jnp.float16):
    stack = w.astype(dtype)
    bits = jax.lax.bitcast_convert_type(stack, jnp.uint16)
    as_bits = lambda x, s: scanned(x, s, lambda w: jax.lax.bitcast_convert_type(w, dtype))
    name = jnp.dtype(dtype).name
    out, memory, text = compiled(scanned, stack)
    same, less, plain = compiled(as_bits, bits)
    print(f"{name}: {stack.nbytes / MIB:.0f} MiB of weights; temporary MiB: scanned {memory:.0f}, as uint16 {less:.0f};",
          f"{whole} in the program: {whole in text}, {whole in plain}; same numbers: {np.array_equal(out, same)}")
    seen[name] = (memory / (stack.nbytes / MIB) > 1.9, less / (stack.nbytes / MIB) < 0.3, whole in text, whole in plain, np.array_equal(out, same))
assert seen == {"bfloat16": (True, True, True, False, True), "float16": (False, True, False, False, True)}, seen
EOP
