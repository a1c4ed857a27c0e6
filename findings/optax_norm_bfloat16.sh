#!/usr/bin/env bash
# optax's global norm of bfloat16 gradients stops counting layers, so clip_by_global_norm leaves more than it was told.
# Guess: a norm of bfloat16 gradients is off by half a percent, for jnp.sum adds in float32 inside; a norm clipped to 1 is 1.
# Truth (optax 0.2.8, jax 0.10.2): each leaf's sum of squares is rounded to bfloat16, and the leaves are then added up in bfloat16, in the
#   tree's order. Once the sum is 256, a leaf that adds less than 1 adds nothing. An embedding ("embed" comes before "layers") with norm 16
#   hides all 290 others: 16 instead of 22. 1000 leaves of norm 0.99 have norm 16 too, since the sum stands still at 256; clipped to 1,
#   they keep 1.96. The same under jit (on a CPU). A test with 64 such leaves sees nothing.
# Who: full fine-tuning with bfloat16 parameters whose layers are separate leaves (experts of a mixture above all): clipping is too weak
#   just where gradients are large, and the logged norm changes with the tree's order and with layers stacked for a scan. Sum in float32:
#   optax.tree.norm(optax.tree.cast(gradients, jnp.float32)), and scale by that.
# Known: AI-Hypercomputer/maxtext, pull request 5143 (open), which clips by a float32 norm of its own.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np, optax
print("optax", optax.__version__, "jax", jax.__version__)

def exact(tree):
    return float(np.sqrt(sum(np.sum(np.asarray(x, np.float64) ** 2) for x in jax.tree.leaves(tree))))

def leaf(norm, dtype, key):
    x = jax.random.normal(key, (256,))
    return (norm * x / jnp.linalg.norm(x)).astype(dtype)

def gradients(large, small, number, dtype):
    keys = jax.random.split(jax.random.key(0), number + 1)
    tree = {"layers": [leaf(small, dtype, k) for k in keys[1:]]}
    return tree | ({"embed": leaf(large, dtype, keys[0])} if large else {})

clip = optax.clip_by_global_norm(1.0)
def run(name, tree):
    said, left = float(optax.tree.norm(tree)), exact(clip.update(tree, clip.init(tree))[0])
    print(f"{name:58s} norm {exact(tree):5.2f}, optax says {said:5.2f}; clipped to 1 it is {left:.2f}")
    return said / exact(tree), left

for dtype in (jnp.float32, jnp.bfloat16):
    embedding = gradients(16.0, 0.9, 290, dtype)
    said, left = run(f"{dtype.__name__}, an embedding of norm 16, 290 leaves of 0.9:", embedding)
    many, kept = run(f"{dtype.__name__}, 1000 leaves of norm 0.99:", gradients(None, 0.99, 1000, dtype))
    few, fine = run(f"{dtype.__name__}, 64 leaves of norm 0.99:", gradients(None, 0.99, 64, dtype))
    assert abs(few - 1) < 0.02 and abs(fine - 1) < 0.02
    if dtype == jnp.float32:
        assert max(abs(x - 1) for x in (said, left, many, kept)) < 1e-3
    else:
        jitted = float(jax.jit(optax.tree.norm)(embedding))
        stacked = float(optax.tree.norm(embedding | {"layers": jnp.stack(embedding["layers"])}))
        print(f"bfloat16, the first of these under jit: {jitted:.2f}; with its layers stacked to one leaf: {stacked:.2f}")
        repaired = float(optax.tree.norm(optax.tree.cast(embedding, jnp.float32)))
        print(f"cast to float32 first: {repaired:.2f}")
        assert abs(repaired / exact(embedding) - 1) < 1e-3
        assert said < 0.8 and left > 1.25 and many < 0.6 and kept > 1.7
        assert jitted < 0.85 * exact(embedding) and abs(stacked / exact(embedding) - 1) < 0.02
EOF
