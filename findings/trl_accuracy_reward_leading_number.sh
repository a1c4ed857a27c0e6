#!/usr/bin/env bash
# TRL's accuracy reward pays the first number of a bare LaTeX solution: for 2\sqrt{3} the reply 2 gets 1 and the reply 2\sqrt{3} gets 0.
# Guess: `accuracy_reward` takes "raw-text solutions"; the example in its docstring has \frac{1}{3}, without dollar signs, and is graded
#   right. A solution that it cannot read is skipped (None). So other bare LaTeX is graded right, or skipped.
# Truth (trl 1.16.0, math-verify 0.9.0): outside $ $ only plain numbers and fractions of two integers are looked for. \sqrt{3} holds
#   none at its start and is skipped; 2\sqrt{3}, 3\pi, 2^{10}, 4x-3 and (-\infty, 3] are taken for 2, 3, 2, 4 and 3, so that the right
#   reply gets 0 and the bare number 1; for 5 + 2i, (3, 4) and [2, 5) the right reply gets 0 too. Nothing warns; what was read shows in
#   the column gold_parsed of the logged completions. With dollar signs around the solution all of them are graded right.
# Who: GRPO on a data set whose answers stand in a column of their own, as MATH's do: most numbers and fractions work, so the mean
#   reward looks healthy, while answers with a root, a power, pi or a variable teach to stop after the first number. Write
#   "$" + answer + "$" first. ms-swift 4.6.0's MathAccuracy parses the solution in the same way (by reading, not run).
# Known: huggingface/Math-Verify#74, where bare LaTeX is called unsupported; TRL does not say so.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.13.2 packaging==26.4
"$tmp/v/bin/pip" install -q --no-compile --no-deps trl==1.16.0
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
from trl.rewards import accuracy_reward
print("trl", version("trl"), "math-verify", version("math-verify"))

def paid(solution, *answers):
    replies = [[{"role": "assistant", "content": rf"So the answer is \boxed{{{answer}}}."}] for answer in answers]
    return accuracy_reward(replies, [solution] * len(answers))

print(f"{'solution':16s} {'right reply, bare number':30s} bare: {'rewards':14s} in dollar signs: rewards")
CASES = [(r"\frac{1}{3}", "1", [1, 0]), ("42", "4", [1, 0]), (r"\sqrt{3}", "3", [None, None]),
         (r"2\sqrt{3}", "2", [0, 1]), (r"3\pi", "3", [0, 1]), ("2^{10}", "2", [0, 1]), ("4x-3", "4", [0, 1]),
         (r"(-\infty, 3]", "3", [0, 1]), ("5 + 2i", "5", [0, 0]), ("(3, 4)", "3", [0, 0]), ("[2, 5)", "2", [0, 0])]
for solution, number, expected in CASES:
    bare, dollars = paid(solution, solution, number), paid(f"${solution}$", solution, number)
    print(f"{solution:16s} {solution + ' , ' + number:30s} {str(bare):20s} {dollars}")
    assert bare == expected and dollars == [1, 0]
EOP
