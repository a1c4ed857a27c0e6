#!/usr/bin/env bash
# inspect_ai's match(numeric=True) compares five digits: 1000001 is right for 1000000; and a number in \boxed{} is passed over for an earlier one.
# Guess: `numeric` matches numbers "normalized and compared": currency signs and commas go, and 42 is compared with 42 as numbers, exactly, or to
#   float precision. At the default location, the end, the last number of the reply counts, in LaTeX as well.
# Truth (inspect_ai 0.3.285): both numbers are written with five significant digits and compared as text. Integers from 100,000 on are not told
#   apart within half a unit of their fifth digit: 123457 for 123456, 1000049 for 1000000 (1000051 is wrong), while 99998 for 99999 is wrong.
#   A number counts only if it is a word of its own: \boxed{42}, x=42 and 42km are no numbers, and the last word that is one is compared
#   instead, so "10 apples and 5 pears: \boxed{15}" is wrong for 15 and right for 5. Commas go before words are read: (1,2) is 12, (1, 2) is 2; and
#   2*3 is 23. Nothing warns; Score.answer shows 1.2346e+05 where one looks.
# Who: whoever scores GSM8K-like or competition answers by it, or takes it as a verifiable reward: large answers (counts, remainders before a
#   modulus, money) are paid for the wrong last digits, and models that box their answers are scored by a number of their working. Use
#   the scorer math() there, or a verifier of one's own.
# Seen: the table below; the docstring names currency signs, separators, formatting marks and %, but no precision.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile inspect_ai==0.3.285
cd "$tmp"; HOME="$tmp" "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import asyncio
from importlib.metadata import version
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Target, match
from inspect_ai.solver import TaskState

print("inspect_ai", version("inspect_ai"))


def right(target, reply):
    state = TaskState(model="mockllm/model", sample_id=1, epoch=1, input="", messages=[], output=ModelOutput.from_content("mockllm/model", reply))
    return asyncio.run(match(numeric=True)(state, Target(target))).value == "C"


CASES = [("123456", "The answer is 123457.", True), ("1000000", "1000001", True), ("1000000", "1000049", True), ("1000000", "1000051", False),
         ("100007", "100012", True), ("99999", "99998", False), ("3.14159", "3.14161", True), ("2027025", "2027000", True),
         ("42", "ANSWER: 42", True), ("42", r"So the answer is $\boxed{42}$.", False), ("15", "10 apples and 5 pears: x=15", False),
         ("5", r"Of 10 apples and 5 pears there are $\boxed{15}$", True), ("42", "42 km", True), ("42", "42km", False),
         ("12", "(1, 2)", False), ("12", "(1,2)", True), ("23", "2*3", True), ("-42", "- 42", False), ("42", "- 42", True)]
print(f"{'target':10s} {'reply':50s} right?")
for target, reply, expected in CASES:
    found = right(target, reply)
    print(f"{target:10s} {reply:50s} {found}")
    assert found == expected
EOP
