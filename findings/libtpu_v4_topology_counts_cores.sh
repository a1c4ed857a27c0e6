#!/usr/bin/env bash
# A described slice of TPU v4 has a device for each core, one of v5p a device for each chip; and a slice of one chip is refused.
# Guess: get_topology_desc("v4:2x2x1") and ("v5p:2x2x1") are four chips, so four devices each, as jax.devices() has them in a run;
#   "v5e:1x1" is one.
# Truth (jax 0.10.2, libtpu 0.0.42.1): v4 gives 8 devices of one core, v5p 4 of two. With chip_config_name="megacore" v4 gives 4 of
#   two cores. "v5e:1x1" raises unless chips_per_host_bounds=(1, 1, 1) says that its host has one chip.
# Who: whoever compiles ahead of time to see whether a program fits: bytes a device stand for half a chip, the mesh has twice as many
#   places as the machine, and every batch is split twice as finely.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42.1
cd "$tmp"
cat > slice.py <<'EOF'
import os, sys
name, kind, how = sys.argv[1], sys.argv[2], eval(sys.argv[3])
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": kind, "JAX_PLATFORMS": "cpu"}
from jax.experimental import topologies
try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices
    print(name, how, "devices", len(devices), "cores of each", devices[0].num_cores)
except Exception as error:
    print(name, how, type(error).__name__, "chips_per_host_bounds" in str(error))
EOF
{
  "$tmp/v/bin/python" slice.py v4:2x2x1 v4-8 "{}"
  "$tmp/v/bin/python" slice.py v5p:2x2x1 v5p-8 "{}"
  "$tmp/v/bin/python" slice.py v4:2x2x1 v4-8 "dict(chip_config_name='megacore')"
  "$tmp/v/bin/python" slice.py v5e:1x1 v5litepod-1 "{}"
  "$tmp/v/bin/python" slice.py v5e:1x1 v5litepod-1 "dict(chips_per_host_bounds=(1, 1, 1))"
} 2>stderr | tee seen || { cat stderr; exit 1; }
diff seen - <<'EOF'
v4:2x2x1 {} devices 8 cores of each 1
v5p:2x2x1 {} devices 4 cores of each 2
v4:2x2x1 {'chip_config_name': 'megacore'} devices 4 cores of each 2
v5e:1x1 {} JaxRuntimeError True
v5e:1x1 {'chips_per_host_bounds': (1, 1, 1)} devices 1 cores of each 1
EOF
