#!/usr/bin/env bash
# Orbax saves a state with a numpy scalar in it, then refuses to restore it into that same state.
# Guess: what StandardSave accepts, StandardRestore accepts as its target.
# Truth (orbax-checkpoint 0.12.8): np.float32(...) and np.int64(...) leaves, which np.mean, np.max and indexing return,
#   are saved (as 0-d arrays), but as a target they raise "Unsupported type: numpy.float32": the run trains
#   for hours, checkpoints all along, and only resuming fails. Without a target they come back as 0-d np.ndarray.
#   0-d arrays, float and int work both ways.
# Who: training states that carry a best return, a reward baseline or a KL coefficient next to the weights.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import os
import jax.numpy as jnp, numpy as np, orbax.checkpoint as ocp
print("orbax-checkpoint", ocp.__version__, "numpy", np.__version__)
returns = np.array([1.0, 2.0], np.float32)
leaves = {"np.float32": returns.mean(), "np.int64": np.arange(3).sum(), "0-d array": np.asarray(returns.mean()), "float": float(returns.mean())}
failed = []
for name, leaf in leaves.items():
    manager = ocp.CheckpointManager(os.path.abspath(name.replace(" ", "_")))
    state = {"w": jnp.ones(2), "best": leaf}
    saved = manager.save(1, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    free = manager.restore(1)["best"]
    try:
        result = repr(manager.restore(1, args=ocp.args.StandardRestore(state))["best"])
    except ValueError as error:
        result = f"ValueError: {error}"
        failed.append(name)
        assert "Unsupported type" in str(error)
    print(f"{name:10s} saved {saved}; restored without target as {type(free).__name__}; into the same state: {result}")
    assert saved
assert failed == ["np.float32", "np.int64"], failed
EOF
