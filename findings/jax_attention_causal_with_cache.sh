#!/usr/bin/env bash
# jax.nn.dot_product_attention(is_causal=True) with a cache of keys: the newest query sees the oldest key, and nothing else.
# Guess: with one query and S cached keys, or a chunk of T queries behind them, the last query is the newest place, so that "causal" lets it see all S
#   keys and a window of W its last W; and a query whose mask leaves it no key gives 0.
# Truth (jax 0.10.2): query i is place i from the left whatever S is. One query with is_causal=True gives the value of key 0, with any keys; the first of
#   two queries that of key 0, the second a mean of keys 0 and 1; local_window_size counts from there too, so that a window of two sees key 0 alone.
#   What is right while T = S (training, prefill) is wrong in every later step, without an error. And a query that may see no key, by its mask or
#   because key_value_seq_lengths is 0, gives the plain mean of all values, padding included, while one beyond query_seq_lengths gives 0.
# Who: samplers that reuse the training call in their decode step, chunked prefill, left-padded batches whose padding is not masked again later.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.3.5
cat > "$tmp/decode.py" <<'EOP'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__)
S = 5
keys = jax.random.normal(jax.random.key(0), (1, S, 1, 4))  # [batch, places, heads, features]
queries = jax.random.normal(jax.random.key(1), (1, S, 1, 4))
values = jnp.broadcast_to(jnp.arange(float(S))[None, :, None, None], keys.shape)


def attend(queries, **options):
    return np.asarray(jax.nn.dot_product_attention(queries, keys, values, **options))[0, :, 0, 0]


whole = attend(queries, is_causal=True)
print("all five queries, causal:                ", whole.round(3))
last = attend(queries[:, -1:], is_causal=True)
print("the newest alone, causal:                ", last.round(3), "and without is_causal", attend(queries[:, -1:]).round(3))
two = attend(queries[:, -2:], is_causal=True)
print("the two newest, causal:                  ", two.round(3), "where all five gave", whole[-2:].round(3))
window = attend(queries[:, -1:], local_window_size=(1, 0))
print("the newest alone, itself and one before: ", window.round(3), "where all five gave", attend(queries, local_window_size=(1, 0))[-1:].round(3))
assert whole[0] == 0 and last[0] == 0 and two[0] == 0 and window[0] == 0
assert abs(whole[-1] - attend(queries[:, -1:])[0]) < 1e-6 and whole[-1] > 0.1
assert two[1] <= 1 and abs(two[1] - whole[-1]) > 0.1

nothing = attend(queries[:, :1], mask=jnp.zeros((1, 1, 1, S), bool))
empty = attend(queries[:, :1], key_value_seq_lengths=jnp.array([0]))
beyond = attend(queries[:, :2], query_seq_lengths=jnp.array([1]), key_value_seq_lengths=jnp.array([S]))
print("no key by its mask:", nothing, "no key by its length:", empty, "a query beyond the length:", beyond[1:])
assert nothing[0] == empty[0] == np.mean(range(S)) and beyond[1] == 0
EOP
"$tmp/v/bin/python" "$tmp/decode.py"
