#!/usr/bin/env bash
# optax's integer cross entropy reads the usual ignore label -100 as a token near the end of the vocabulary.
# Guess: a label of -100 (the ignore index of transformers, TRL and torch) is skipped, raises, or gives NaN that shows.
# Truth (optax 0.2.8): with at least 100 classes it is the loss of class V-100, finite, with a full gradient that raises
#   that token; only with fewer classes does NaN appear (so a toy vocabulary behaves unlike a real one).
# Who: language-model losses on batches from a Hugging Face collator: every prompt and padding position trains
#   the policy or reward model towards one rare token. Mask first: jnp.where(labels >= 0, labels, 0), then weigh.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import jax, jax.numpy as jnp, optax
print("jax", jax.__version__, "optax", optax.__version__)
loss = optax.softmax_cross_entropy_with_integer_labels
V = 32000
logits = jax.random.normal(jax.random.key(0), (V,))
ignored, other = float(loss(logits, jnp.array(-100))), float(loss(logits, jnp.array(V - 100)))
gradient = jax.grad(lambda l: loss(l, jnp.array(-100)))(logits)
raised = jnp.nonzero(gradient < 0)[0].tolist()
toy = loss(logits[:64], jnp.array(-100))
print(f"{V} classes: loss(-100) = {ignored:.4f}, loss({V - 100}) = {other:.4f}; tokens it raises: {raised}")
print("64 classes: loss(-100) =", toy)
x = jnp.zeros(V)  # 300 steps on a batch that has nothing but ignored positions
for _ in range(300):
    x = x - 1.0 * jax.grad(lambda l: loss(l, jnp.array(-100)))(x)
p = jax.nn.softmax(x)
print(f"after 300 steps on ignored positions only: token {int(p.argmax())} has probability {float(p.max()):.2f}")
assert ignored == other and raised == [V - 100] and bool(jnp.isnan(toy))
assert int(p.argmax()) == V - 100 and float(p.max()) > 0.5
EOF
