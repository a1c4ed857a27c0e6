#!/usr/bin/env bash
# add_bos_token reads False on a tokenizer that adds BOS, and saying it again changes every encoding.
# Guess: tok.add_bos_token says whether BOS is added; passing add_bos_token=True to one that does so changes nothing.
# Truth (transformers 5.23.0, tokenizers 0.23.3): it is False unless it was given, whatever the post-processor of tokenizer.json does.
#   Giving add_bos_token or add_eos_token, even the value that it reads, replaces the post-processor by a fresh template of the two
#   flags: add_bos_token=True drops the EOS that the file adds, add_bos_token=False drops both.
# Who: code that adds BOS itself `if not tok.add_bos_token` trains on two of them; copying the flags from one tokenizer to another
#   changes what the policy, the reference and the reward model read.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import tokenizers, transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
core = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "<s>": 2, "</s>": 3}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
core.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained("saved")

def load(**given):
    tok = AutoTokenizer.from_pretrained("saved", **given)
    got = tok.add_bos_token, tok.add_eos_token, tok.convert_ids_to_tokens(tok("a").input_ids)
    print(f"{str(given):25s} add_bos_token {got[0]}, add_eos_token {got[1]}, \"a\" -> {got[2]}")
    return got

assert Tokenizer.from_file("saved/tokenizer.json").encode("a").tokens == ["<s>", "a", "</s>"]
assert load() == (False, False, ["<s>", "a", "</s>"])
assert load(add_bos_token=True) == (True, False, ["<s>", "a"])
assert load(add_bos_token=False) == load(add_eos_token=False) == (False, False, ["a"])
assert load(add_bos_token=True, add_eos_token=True) == (True, True, ["<s>", "a", "</s>"])
EOF
