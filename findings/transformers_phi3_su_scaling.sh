#!/usr/bin/env bash
# The first files of Phi-3's 128k models, whose rope scaling is called "su", no longer load as a config.
# Guess: "su" is the older name of "longrope", as the code of Phi3Config says where it renames it, so both give one config.
# Truth (transformers 5.23.0): the renaming sits where the fields of longrope have been asked for already, under the new name
#   and before original_max_position_embeddings has been copied among them: KeyError. "yarn", which is renamed at the same
#   place and is another method with other formulas, loads and becomes longrope, without a word.
# Who: whoever has a copy of the first revision of such a model, or reads its config.json for a converter.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 numpy==2.4.6
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import transformers
from transformers import Phi3Config
print("transformers", transformers.__version__)
sizes = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1, intermediate_size=64, vocab_size=64,
             max_position_embeddings=64, original_max_position_embeddings=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
found = {}
for kind in ("longrope", "su", "yarn"):
    scaling = {"type": kind, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    try:
        read = Phi3Config(**sizes, rope_scaling=scaling).rope_parameters
        found[kind] = read["rope_type"], read["original_max_position_embeddings"]
    except KeyError as error:
        found[kind] = "KeyError", "original_max_position_embeddings" in str(error)
    print(f"type {kind}: {found[kind]}")
assert found == {"longrope": ("longrope", 16), "su": ("KeyError", True), "yarn": ("longrope", 16)}
EOF
