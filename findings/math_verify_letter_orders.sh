#!/usr/bin/env bash
# math-verify takes an order of letters for a product, so every order of them is right.
# Guess: \boxed{BAC} and \boxed{CAB} are two different answers: neither is a formula, and math-verify compares such texts as they stand.
# Truth (math-verify 0.9.0, latex2sympy2_extended 1.11.0): letters in math are symbols, side by side they are multiplied, and a product
#   may be turned round: all 6 orders of BAC are equal, and the 24 of BADC, and abc, and A \cdot C \cdot B, and DOG and GOD, listen
#   and silent. Case is folded as well (A is a, C is c). "B, A, C" is a set, with the same end; (B, A, C) keeps its order. With
#   \text{BAC} as the truth only BAC is right, in a reply's \boxed{BAC} too.
# Who: rewards and scores on problems whose answer is an order (who finished first, which event came when, a ranking), a code word,
#   a ray or a vector AB. Where the true answer is letters, put it in \text{} or compare text. A truth that is bare letters with neither
#   $ nor \boxed is not read at all.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
cd "$tmp"; "$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
from itertools import permutations
from math_verify import parse, verify
print("math-verify", version("math-verify"), "latex2sympy2_extended", version("latex2sympy2_extended"))
orders = lambda letters, form: [form.format(*order) for order in permutations(letters)]
for truth, replies, paid in ((r"\boxed{BAC}", orders("ABC", r"\boxed{{{}{}{}}}"), 6), (r"$BADC$", orders("ABCD", r"\boxed{{{}{}{}{}}}"), 24),
                             (r"\boxed{BAC}", [r"\boxed{abc}", r"\boxed{A \cdot C \cdot B}"], 2),
                             (r"\boxed{DOG}", [r"\boxed{GOD}"], 1), (r"\boxed{listen}", [r"\boxed{silent}"], 1),
                             (r"\boxed{B, A, C}", orders("ABC", r"\boxed{{{}, {}, {}}}"), 6),
                             (r"\boxed{(B, A, C)}", orders("ABC", r"\boxed{{({}, {}, {})}}"), 1),
                             (r"$\text{BAC}$", orders("ABC", r"\boxed{{{}{}{}}}"), 1),
                             (r"$\text{BAC}$", orders("ABC", r"\boxed{{\text{{{}{}{}}}}}"), 1)):
    right = [reply for reply in replies if verify(parse(truth), parse(reply))]
    if replies:
        print(f"truth {truth:18s} {len(right):2d} of {len(replies):2d} replies like {replies[-1]} are right")
    assert len(right) == paid and (paid != 1 or len(replies) == 1 or "BAC" in right[0].replace(", ", "")), right
assert parse("BAC") == [] and not verify(parse("BAC"), parse(r"\boxed{BAC}"))
EOF
