#!/usr/bin/env bash
# LlamaTokenizer replaces the normalizer that tokenizer.json names, and a text's first space is lost.
# Guess: a fast tokenizer is its tokenizer.json: transformers and tokenizers give the same ids for the same file.
# Truth (transformers 5.23.0, tokenizers 0.23.3): loaded as LlamaTokenizer, by itself or named in tokenizer_config.json, the file's
#   normalizer is not used. A Prepend "▁" normalizer (as of Llama 2) becomes a Metaspace pre-tokenizer, which adds no "▁" before one that is
#   there: " hi" is encoded as "hi" and decodes without its space. Named PreTrainedTokenizerFast, the same file is read as written.
# Who: completions that start with a space, scored or trained on alone: ids differ from those of every reader of
#   tokenizer.json itself (tokenizers, Rust servers, JAX loaders), and log-probabilities are taken of other text.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import json, os
import tokenizers, transformers
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, LlamaTokenizer
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", "▁", "h", "i", "hi", "▁hi"])}
core = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "i"), ("▁", "hi")], unk_token="<unk>", fuse_unk=True))
core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # as in Llama 2's file
core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
os.makedirs("model")
core.save("model/tokenizer.json")
texts = ["hi", " hi", "  hi", "hi hi"]
direct = [Tokenizer.from_file("model/tokenizer.json").encode(t).tokens for t in texts]
print("tokenizers:", direct)
assert direct == [["▁hi"], ["▁", "▁hi"], ["▁", "▁", "▁hi"], ["▁hi", "▁hi"]]

def through(name, read=AutoTokenizer):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    json.dump({"tokenizer_class": name, **special}, open("model/tokenizer_config.json", "w"))
    tok = read.from_pretrained("model")
    ids = [tok(t, add_special_tokens=False).input_ids for t in texts]
    tokens, back = [tok.convert_ids_to_tokens(i) for i in ids], [tok.decode(i) for i in ids]
    print(f"{read.__name__}, tokenizer_class {name}: {tokens}, decoded {back}; normalizer {tok.backend_tokenizer.normalizer}")
    return tokens, back

assert through("PreTrainedTokenizerFast") == (direct, texts)
lossy = [["▁hi"], ["▁hi"], ["▁", "▁hi"], ["▁hi", "▁hi"]], ["hi", "hi", " hi", "hi hi"]
for name in ("LlamaTokenizer", "LlamaTokenizerFast"):
    assert through(name) == through(name, LlamaTokenizer) == lossy
EOF
