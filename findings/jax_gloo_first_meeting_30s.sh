#!/usr/bin/env bash
# Two CPU processes of jax with gloo must meet in their first collective within 30 seconds, or both fail.
# Guess: a process that is slower, since it compiles or reads data for longer, is waited for: initialize() had
#   initialization_timeout=300, heartbeats go on, and once they have met, a collective waits as long as it takes.
# Truth (jax 0.10.2): the channel between some devices opens at the first collective over just these, with a limit of 30 s
#   that no argument of initialize() changes: "Gloo context initialization failed: DEADLINE_EXCEEDED". With a small collective
#   over the same devices right after initialize(), the same program waits 40 s and more. The channel tells so on standard output,
#   where the program's results go.
# Who: whoever trains in several processes on CPUs, or tests multi-host code there: four processes that compile on two cores drift
#   apart by more.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
cd "$tmp"
cat > two.py <<'EOF'
import os, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
port, me, early = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "early"
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, me, initialization_timeout=300)
mesh = Mesh(np.array(jax.devices()), ("d",))
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("d")), np.ones(1, np.float32))
total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
if early:
    total(x).block_until_ready()
time.sleep(40 * me)
began = time.time()
try:
    found = float(jax.jit(lambda x: (2 * x).sum(), out_shardings=NamedSharding(mesh, P()))(x))
    told = f"sum {found:g}, waited for 40 s: {time.time() - began > 30}"
except Exception as error:
    told = f"{type(error).__name__}: {'Gloo context initialization failed' in str(error)}, {'29.9' in str(error)}"
if me == 0:
    print("early" if early else "late", told, flush=True)
if me == 0:
    os.kill(int(sys.argv[4]), signal.SIGKILL)  # the other one, which ends with a stack trace where this one goes first
    os._exit(0)
time.sleep(60)
EOF
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }
for when in late early; do
  where=$(port)
  "$tmp/v/bin/python" two.py "$where" 1 "$when" > "other-$when" 2>&1 &
  "$tmp/v/bin/python" two.py "$where" 0 "$when" $! 2>stderr || cat stderr
  wait 2>/dev/null || true
done | sed 's/peer ranks.*/peer ranks/' | tee seen
grep -v '^\[Gloo\]' seen | diff - <(printf '%s\n' "late JaxRuntimeError: True, True" "early sum 4, waited for 40 s: True")
grep -q '^\[Gloo\]' seen
