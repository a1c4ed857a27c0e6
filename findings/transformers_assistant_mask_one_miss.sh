#!/usr/bin/env bash
# One reply that the assistant mask cannot place unmasks the rest of a chat: nothing of it is trained on, or the user's turns are.
# Guess: return_assistant_tokens_mask marks each {% generation %} block by itself: a block that truncation cuts or drops loses what was cut,
#   and the others stay marked; a space at the end of a reply is at most one token more or less.
# Truth (transformers 5.23.0, tokenizers 0.23.3): blocks are placed in order, and the first whose start has no token ends the search. Cut
#   from the left (truncation_side="left"), the mask is all 0 as soon as an earlier reply is cut, though the last stands whole. With offsets
#   that trim spaces (ByteLevel's trim_offsets=True, its default) a reply that begins with a space does the same to itself and every later
#   one; one that ends with a space, where the block ends with it, is marked to the end of the chat: the user's turns too. No warning.
# Who: training on the assistant's words only (SFT before preference RL, per-turn credit): long chats cut from the left give no loss, and stray
#   spaces train the policy to write the user's part; TRL's assistant_only_loss refuses a chat only if nothing of it is marked.
#   Stripping replies, and cutting after the mask is made, helps.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import tokenizers, transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
TEMPLATE = (
    "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '[end]' }}{% endfor %}"
)

def tokenizer(trim):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=trim)
    core.train_from_iterator(["a cat sat there", "a dog ran off"] * 9, trainers.BpeTrainer(
        special_tokens=["[user]", "[assistant]", "[end]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE)

def marked(tok, first, **options):
    chat = [("user", "what sat"), ("assistant", first), ("user", "and then"), ("assistant", "a dog ran")]
    got = tok.apply_chat_template([{"role": role, "content": said} for role, said in chat], tokenize=True, return_dict=True,
                                  return_assistant_tokens_mask=True, **options)
    ids, mask = got["input_ids"], got["assistant_masks"]
    text = "".join(tok.decode([i]) if keep else "~" for i, keep in zip(ids, mask))
    while "~~" in text:
        text = text.replace("~~", "~")
    print(f"  first reply {first!r:12s} {options or ''} of {tok.decode(ids)!r}\n    marked (~: not) {text!r}")
    return text

exact = tokenizer(trim=False)
print("offsets with spaces")
for first in ("a cat", "a cat ", " a cat"):
    assert marked(exact, first) == f"~{first}~a dog ran~"
exact.truncation_side = "left"
length = len(exact.apply_chat_template([{"role": "user", "content": "and then"}, {"role": "assistant", "content": "a dog ran"}],
                                       tokenize=True, return_dict=True)["input_ids"])
print("cut from the left")
assert marked(exact, "a cat", truncation=True, max_length=length) == "~"
print("trimmed offsets")
trims = tokenizer(trim=True)
assert marked(trims, "a cat") == "~a cat~a dog ran~"
assert marked(trims, " a cat") == "~"
assert marked(trims, "a cat ") == "~a cat [end][user]and then[end][assistant]a dog ran[end]"
EOF
