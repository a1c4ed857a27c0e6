#!/usr/bin/env bash
# One NaN metric and Orbax's "keep the best" deletes the best checkpoint.
# Guess: with best_fn and best_mode="max" a NaN score is never the best (NaN compares False, or is put last).
# Truth (orbax-checkpoint 0.12.8): while NaN is there, it outranks every number. max_to_keep=1: scores 5, nan, 1, 2 keep
#   steps 0, 1, 2, 3 in turn; the checkpoint of 5 is deleted for the NaN one, that for 1, and best_step() ends at 2.
#   With max_to_keep=2 the same score 5 is lost one save later. best_mode="min" behaves the same way.
# Who: runs that evaluate while training: one diverged or empty evaluation (mean of nothing is NaN) and the best policy
#   so far is gone from disk, replaced by the diverged one. Turn NaN into -inf (or inf) in best_fn.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import math, os
import jax.numpy as jnp, orbax.checkpoint as ocp
print("orbax-checkpoint", ocp.__version__)

def run(name, scores, keep, mode, best_fn):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, best_fn=best_fn, best_mode=mode)
    manager = ocp.CheckpointManager(os.path.abspath(name), options=options)
    kept = []
    for step, score in enumerate(scores):
        manager.save(step, args=ocp.args.StandardSave({"w": jnp.ones(1)}), metrics={"score": score})
        manager.wait_until_finished()
        kept.append(list(manager.all_steps()))
    print(f"{name:6s} {mode} of {scores}, keep {keep}: on disk after each save {kept}, best_step() {manager.best_step()}")
    return kept, manager.best_step()

nan, score = math.nan, lambda m: m["score"]
kept, best = run("one", [5.0, nan, 1.0, 2.0], 1, "max", score)
assert kept == [[0], [1], [2], [3]] and best == 3
kept, best = run("two", [5.0, nan, 1.0, 2.0], 2, "max", score)
assert kept[-1] == [2, 3] and best == 3
kept, best = run("min", [0.1, nan, 3.0], 1, "min", score)
assert kept == [[0], [1], [2]] and best == 2
guarded = lambda m: -math.inf if math.isnan(m["score"]) else m["score"]
kept, best = run("guard", [5.0, nan, 1.0, 2.0], 1, "max", guarded)
assert kept[-1] == [0] and best == 0
EOF
