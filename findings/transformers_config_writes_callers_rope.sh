#!/usr/bin/env bash
# AutoConfig.for_model keeps the caller's rope_scaling dict and writes rope_theta into it.
# Guess: two configs made from one rope_scaling dict, each with its own rope_theta, have their own rope_theta.
# Truth (transformers 5.23.0): config.rope_parameters is the caller's dict, and rope_theta is put in unless it is there already. So
#   the second config gets the first one's rope_theta, silently, and a later change of one config's rope_parameters changes both.
#   The same holds for LlamaConfig(...). copy.deepcopy of the arguments helps.
# Who: building a small model, a reference or a sweep over rope_theta from one dict of arguments: all runs train with the first value,
#   and a dict logged or hashed before and after differs.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import copy
import transformers
from transformers import AutoConfig, LlamaConfig
print("transformers", transformers.__version__)
for make in (lambda **k: AutoConfig.for_model("llama", **k), LlamaConfig):
    arguments = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    apart = [make(rope_theta=t, **copy.deepcopy(arguments)).rope_parameters["rope_theta"] for t in (5e5, 1e4)]
    print("before:", arguments, "deep copies give rope_theta", apart)
    assert apart == [5e5, 1e4] and arguments == {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    first, second = (make(rope_theta=t, **arguments) for t in (5e5, 1e4))
    got = [c.rope_parameters["rope_theta"] for c in (first, second)]
    print("after: ", arguments, "one dict gives rope_theta", got)
    assert got == [5e5, 5e5] and arguments["rope_scaling"]["rope_theta"] == 5e5
    second.rope_parameters["factor"] = 8.0
    print("second's factor set to 8; the first's is", first.rope_parameters["factor"])
    assert first.rope_parameters["factor"] == 8.0
EOF
