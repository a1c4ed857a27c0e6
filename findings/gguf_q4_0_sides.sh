#!/usr/bin/env bash
# Q4_0 and Q5_0 in GGUF round the two sides of zero differently.
# Guess: 4 bits over [-m, m] err by at most half a step, and as much for +m as for -m.
# Truth (gguf 0.19.0, as in llama.cpp): the scale is the signed largest value / -8, so levels run from 8 steps on that value's side to only
#   7 on the other. A block with +1 and -1 stores 1 and -0.875: a whole step, always on the side that is not the largest;
#   which side that is flips when the maximum changes by one part in a million. Q8_0 and Q4_1 are not like that.
# Who: comparing an aligned model with its reference when both come from GGUF: a tiny update to one weight can move another in its
#   block by a step, so log-ratios and KL between quantised models contain jumps training never made.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
"$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize, quantize
print("gguf", version("gguf"))
block = np.linspace(-0.5, 0.5, 32, dtype=np.float32)
block[:2] = 1.0, -1.0
nudged = block.copy()
nudged[1] = -1.000001  # one weight moves by one part in a million
for kind, levels in ((Q.Q4_0, 16), (Q.Q5_0, 32), (Q.Q4_1, 16), (Q.Q8_0, 255)):
    back = lambda x: dequantize(quantize(x[None], kind), kind)[0]
    a, b = back(block), back(nudged)
    step = 2.0 / levels
    worst, moved = float(np.abs(a - block).max() / step), int((np.abs(a - b) > 0.1 * step).sum())
    print(f"{kind.name}: +1, -1 -> {a[0]:+.4f}, {a[1]:+.4f}; worst error {worst:.2f} steps; after the nudge {b[0]:+.4f}, {b[1]:+.4f}, "
          f"{moved} of 32 weights moved")
    if kind in (Q.Q4_0, Q.Q5_0):
        assert a[0] == 1 and a[1] == -(1 - step) and b[0] == 1 - step and abs(b[1] + 1) < 1e-3 and worst > 0.99 and moved >= 2
    else:
        assert worst < 0.6 and float(np.abs(a - b).max()) < 0.51 * step * (2 if kind is Q.Q8_0 else 1)
EOF
