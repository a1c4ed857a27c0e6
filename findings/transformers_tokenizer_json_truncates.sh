#!/usr/bin/env bash
# One padded, truncated call and save_pretrained writes that length into tokenizer.json for good.
# Guess: truncation=True, padding="max_length", max_length=4 are arguments of a call; the saved tokenizer has neither.
# Truth (transformers 5.23.0, tokenizers 0.23.3): the call sets them on the Rust tokenizer and they are saved. AutoTokenizer
#   resets them, so in Python all looks well; any reader of tokenizer.json itself (tokenizers, Rust and C++ servers, JAX
#   loaders) cuts every text to 4 tokens and pads shorter ones, silently.
# Who: exporting an aligned model after tokenising its data: evaluation and serving outside transformers see the last batch's length.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import json
import tokenizers, transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2, "<unk>": 3, "<pad>": 4}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tok = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
text = "a b c a b c a b"

def after_saving(folder):
    tok.save_pretrained(folder)
    saved = json.load(open(f"{folder}/tokenizer.json"))
    direct = [Tokenizer.from_file(f"{folder}/tokenizer.json").encode(t).ids for t in (text, "a")]
    print(f"{folder}: truncation {saved['truncation']}, padding {bool(saved['padding'])}; tokenizers reads {direct}; "
          f"AutoTokenizer {AutoTokenizer.from_pretrained(folder)(text).input_ids}")
    return direct

assert after_saving("before") == [[0, 1, 2, 0, 1, 2, 0, 1], [0]]
tok([text, "a"], truncation=True, padding="max_length", max_length=4)  # one ordinary training batch
assert after_saving("after_a_batch") == [[0, 1, 2, 0], [0, 4, 4, 4]]
assert AutoTokenizer.from_pretrained("after_a_batch")(text).input_ids == [0, 1, 2, 0, 1, 2, 0, 1]
tok(text)  # a plain call
assert after_saving("after_a_plain_call") == [[0, 1, 2, 0, 1, 2, 0, 1], [0]]
EOF
