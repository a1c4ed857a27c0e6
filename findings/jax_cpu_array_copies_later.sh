#!/usr/bin/env bash
# On a CPU jnp.array(x) of a numpy array may return before it has copied x: what is written to x next turns up in the jax array.
# Guess: after jnp.array(x) (copy=True is its default) the numpy buffer is free for the next rollout. jnp.asarray and device_put may be
#   views of it, which is for them to say; a jitted function that is handed x has read it when it returns, or takes a copy.
# Truth (jax 0.10.2): from 100 KiB on, a buffer that does not start at a multiple of 64 bytes is copied by another thread, after jnp.array,
#   jnp.asarray, device_put or the jitted call has returned: a write that follows at once is in the array, or in a part of it. One that
#   does start there is copied in time by the first two; a jitted function may still read it later; and device_put's result is a view of
#   it for good, may_alias=False or not. numpy aligns to 16 bytes, so chance decides; small test arrays are never late.
# Who: rollouts and minibatches gathered in one numpy buffer that is filled again (8 environments, 256 steps, 17 numbers are 136 KiB): a batch
#   of the next policy's data under the old log-probabilities, on some runs and not on others. Hand over x.copy(), or block_until_ready()
#   the jax array before writing. (The view of device_put is jax-ml/jax issue 37830.)
# Seen, of 50 batches changed after the call, not aligned: 46 to 50 by every way; aligned: device_put 50, a jitted function that is slow 50.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import jax, jax.numpy as jnp, numpy as np
print("jax", jax.__version__, "numpy", np.__version__)

def buffer(start, steps=256):
    """A numpy array [steps, 8, 17] of zeros whose memory starts `start` bytes after a multiple of 64."""
    raw = np.zeros(steps * 8 * 17 * 4 + 128, np.uint8)
    raw = raw[(start - raw.ctypes.data) % 64 :][: steps * 8 * 17 * 4]
    return raw.view(np.float32).reshape(steps, 8, 17)

w = jnp.zeros((600, 600))
slow = jax.jit(lambda x, w: x + jax.lax.fori_loop(0, 10, lambda _, m: m @ w, w)[0, 0])  # reads x at its end
makers = {
    "jnp.array": jnp.array,
    "jnp.asarray": jnp.asarray,
    "device_put": jax.device_put,
    "device_put, may_alias=False": lambda x: jax.device_put(x, may_alias=False),
    "jitted x + 0": jax.jit(lambda x: x + 0),
    "jitted, slow": lambda x: slow(x, w),
    "jnp.array, ready": lambda x: jnp.array(x).block_until_ready(),
    "jnp.array of x.copy()": lambda x: jnp.array(x.copy()),
}

def changed(make, start, steps=256, batches=50):
    """In how many batches a value shows that was written to the buffer after `make(buffer)` had returned."""
    buf, count = buffer(start, steps), 0
    make(buf).block_until_ready()  # compiled
    for _ in range(batches):
        buf[:] = 0
        batch = make(buf)
        buf[-1] = 1  # the next rollout overwrites the last step
        count += bool(np.asarray(batch)[-1].any())
    return count

seen = {}
for name, make in makers.items():
    seen[name] = changed(make, 16), changed(make, 0), changed(make, 16, steps=64)
    print(f"{name:28s} of 50 batches changed: not aligned {seen[name][0]}, aligned {seen[name][1]}, small {seen[name][2]}")
late = [name for name in makers if "ready" not in name and "copy()" not in name]
assert all(seen[name][0] > 0 for name in late) and all(seen[name][2] == 0 for name in late if name != "jitted, slow")
assert seen["jnp.array"][1] == seen["jnp.asarray"][1] == 0
assert seen["jitted, slow"][1] > 0
assert seen["device_put"][1] == seen["device_put, may_alias=False"][1] == 50
assert seen["jnp.array, ready"] == seen["jnp.array of x.copy()"] == (0, 0, 0)
EOP
