#!/usr/bin/env bash
# math-verify gives full marks to a problem that is repeated and never worked out.
# Guess: a checker of final answers compares values that a text states: "48 + 24" is no answer where the answer is 72, or at least the
#   repeated question of an arithmetic task is none.
# Truth (math-verify 0.9.0): parse takes the expression as it stands and verify compares it by value, so "48 + 24", "\boxed{48+24}" and
#   "6 * 12" are all right for 72. The question itself, sent back word for word, is right in 100 of 100 problems of reasoning-gym's products
#   and of its fraction_simplification ("Give only the simplified fraction"); so is what stands before the "=" of every chain_sum.
# Who: RL with verifiable rewards on arithmetic: copying the question is the easiest policy that gets reward 1, and nothing in the
#   log tells it from the right one. Compare numbers (or refuse sums and products where the true answer is a number).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0 reasoning-gym==0.1.25
cd "$tmp"; "$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
import reasoning_gym
from math_verify import parse, verify
print("math-verify", version("math-verify"), "reasoning-gym", version("reasoning-gym"))
for reply, right in (("72", True), ("73", False), ("48 + 24", True), ("\\boxed{48+24}", True), ("It is 6 * 12.", True), ("48 + 25", False)):
    found = verify(parse("72"), parse(reply))
    print(f"72 and {reply!r}: {found}")
    assert found is right
for name in ("products", "fraction_simplification", "chain_sum"):
    data = reasoning_gym.create_dataset(name, size=100, seed=1, **({"max_terms": 2} if name == "chain_sum" else {}))
    copied = [entry["question"] for entry in data]
    if name == "chain_sum":
        copied = [text.split(": ")[1].removesuffix(" =") for text in copied]
    paid = sum(verify(parse(str(entry["answer"])), parse(text)) for entry, text in zip(data, copied))
    print(f"{name}: copied, {paid} of 100 are right; the first is {copied[0][-80:]!r}, answer {data[0]['answer']}")
    assert paid == 100
EOF
