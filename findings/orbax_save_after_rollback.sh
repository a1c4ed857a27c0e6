#!/usr/bin/env bash
# After going back to an earlier step Orbax saves nothing, without an error, until the old last step is passed.
# Guess: restore(10), train on and save(11) writes step 11 (or raises, since a later step 30 exists).
# Truth (orbax-checkpoint 0.12.8): save(11) returns False, and so does every step up to 30. A crash before 31 resumes from
#   30: the very weights that were given up. force=True does write 11, but then latest_step() is 11 in this process and
#   30 after reopening; deleting the later steps first is what works.
# Who: runs that return to a good checkpoint after a collapse (reward hacking, NaN) and keep the manager.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$tmp"; JAX_PLATFORMS=cpu "$tmp/v/bin/python" - <<'EOF'
import os
import jax.numpy as jnp, orbax.checkpoint as ocp
print("orbax-checkpoint", ocp.__version__)
reopen = lambda: ocp.CheckpointManager(os.path.abspath("run"))

def save(manager, step, **kw):
    done = manager.save(step, args=ocp.args.StandardSave({"w": jnp.full(1, float(step))}), **kw)
    manager.wait_until_finished()
    return done

manager = reopen()
assert all(save(manager, s) for s in (10, 20, 30))
manager = reopen()
assert float(manager.restore(10)["w"][0]) == 10  # back to step 10, and on from there
answers = {s: save(manager, s) for s in (11, 15, 29)}
print("restored step 10; save() of", answers, "on disk", sorted(manager.all_steps()), "resume would take", reopen().latest_step())
assert not any(answers.values()) and reopen().latest_step() == 30
forced = save(manager, 11, force=True)
here, there = manager.latest_step(), reopen().latest_step()
print("save(11, force=True):", forced, "| latest_step() in this process", here, "| reopened", there)
assert forced and (here, there) == (11, 30)
for s in (20, 30):
    manager.delete(s)
ok = save(manager, 12)
print("after delete(20), delete(30): save(12)", ok, "reopened", reopen().latest_step())
assert ok and reopen().latest_step() == 12
EOF
