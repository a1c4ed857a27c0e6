#!/usr/bin/env bash
# A strftime_now passed to apply_chat_template reaches the template as the text "<function>".
# Guess: keyword arguments of apply_chat_template are the template's variables, so strftime_now=lambda f: "26 Jul 2024" fixes the date.
# Truth (transformers 5.23.0): a callable among them becomes the string "<function>", which hides the built-in strftime_now. A template that
#   calls it fails with "'str' object is not callable"; one that asks `is defined` calls the string; one that prints it, prints "<function>".
# Who: reproducible prompts for templates that put in today's date (Llama 3.2's): pass a string variable that the template
#   reads (date_string there), or freeze the clock.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q transformers==5.23.0 jinja2==3.1.6
cd "$tmp"; HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOF' || { cat stderr; exit 1; }
import jinja2, transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
print("transformers", transformers.__version__, "jinja2", jinja2.__version__)
tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")), unk_token="<unk>")
calls = "Today: {{ strftime_now('no date in this format') }}"
asks = "{% if strftime_now is defined %}" + calls + "{% else %}Today: 26 Jul 2024{% endif %}"
shows = "{{ strftime_now }}"
text = "{{ date_string }}"

def render(template, **given):
    try:
        out = tok.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False, **given)
    except Exception as e:
        out = f"{type(e).__name__}: {e}"
    print(f"{template!r} with {', '.join(given) or 'nothing'} -> {out!r}")
    return out

fixed = lambda form: "26 Jul 2024"
assert render(calls) == render(asks) == "Today: no date in this format"
assert render(calls, strftime_now=fixed) == render(asks, strftime_now=fixed) == "TypeError: 'str' object is not callable"
assert render(shows, strftime_now=fixed) == "<function>"
assert render(text, date_string="26 Jul 2024") == "26 Jul 2024"
assert jinja2.Environment().from_string(calls).render(strftime_now=fixed) == "Today: 26 Jul 2024"  # jinja2 itself calls it
EOF
