#!/usr/bin/env bash
# math-verify adds up the digits' groups of 12\,345, and any number written as 12\,000 is 0 to it.
# Guess: a LaTeX space between groups of three digits is read as 12{,}345, 12,\!345 and 12,345 are, all 12345; else it does not parse.
# Truth (math-verify 0.9.0, latex2sympy2_extended 1.11.0): only commas are taken out. An integer followed by another number is a mixed
#   number, whole and part, also where the part is no fraction: 12\,345 is 357, 12\,345\,678 is 1035, 2(3) and (2)(3) are 5, "1 2 3" is 6.
#   A following 0 or decimal multiplies: 12\,000 = 0 and so 15\,000 = 12\,000. With $\boxed{12\,000}$ as the truth every round number
#   written so is right, and 12000 wrong. 2 \cdot 3 and 2(1 + 2) are products. It parses, so nothing is logged.
# Who: rewards and scores for math: \, is how typeset texts group digits, so right replies are not paid, and a truth column with it pays
#   any answer in thousands; a sequence such as $3\ 1\ 2$ is paid in any order. Take such spaces out from between groups of three digits,
#   in replies and truths, before parse; compare sequences yourself.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2 sympy==1.14.0
cd "$tmp"; "$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
from math_verify import parse, verify
print("math-verify", version("math-verify"), "latex2sympy2_extended", version("latex2sympy2_extended"))
for text, value in ((r"12{,}345", 12345), (r"12,\!345", 12345), (r"12,345", 12345), (r"12\,345", 357), (r"12\;345", 357), (r"12\ 345", 357),
                    (r"12\,345\,678", 1035), (r"12\,000", 0), (r"1\,250\,000", 0), (r"2(3)", 5), (r"(2)(3)", 5), (r"2 \cdot 3", 6),
                    (r"2(1 + 2)", 6), (r"2\frac{1}{2}", 2.5), (r"1\ 2\ 3", 6)):
    found = parse(rf"\boxed{{{text}}}")[0].doit()
    print(f"\\boxed{{{text}}}".ljust(24), "is", found)
    assert float(found) == value, (text, found)
for truth, reply, right in ((r"12345", r"\boxed{12\,345}", False), (r"357", r"\boxed{12\,345}", True),
                            (r"$12\,345$", r"\boxed{12345}", False), (r"$12\,000$", r"\boxed{12000}", False),
                            (r"$12\,000$", r"\boxed{15\,000}", True), (r"$12\,000$", r"\boxed{0}", True),
                            (r"$3\ 1\ 2$", r"\boxed{1\ 2\ 3}", True)):
    found = verify(parse(truth), parse(reply))
    print(f"truth {truth:10s} reply {reply:18s} {found}")
    assert found is right, (truth, reply)
EOF
