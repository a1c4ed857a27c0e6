#!/usr/bin/env bash
# EasyDeL's math reward takes a later comma for the answer, and the first \boxed for the last: right replies get 0.
# Guess: a reply without \boxed or #### is judged by its last number; with several \boxed the last one counts, as in the benchmarks.
# Truth (easydel 0.3.0, MathVerifier): a "number" may be made of commas alone, so any comma after the answer is the last number, cannot be read,
#   and the reply gets 0: "She makes 18 dollars, every day." (what ends in "18, as asked." is read, for that comma touches the digits). Of
#   several \boxed, or several ####, the first is read: who corrects himself is judged by what he took back. A fraction, a unit or a dollar
#   sign within \boxed gives 0 and is not looked for elsewhere; the gold answers 1/2 and 3x match no reply at all.
# Who: RLVR runs on GSM8K and MATH with it: the policy learns to end with its number and to write no prose after it, and the reward reads
#   lower than the accuracy.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-deps easydel==0.3.0
cd "$tmp"; "$tmp/v/bin/python" - <<'EOP'
import sysconfig
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location

print("easydel", version("easydel"))
# The verifiers' module alone needs none of the packages that easydel needs.
path = sysconfig.get_path("purelib") + "/easydel/trainers/rlvr_trainer/reward_verifiers.py"
spec = spec_from_file_location("reward_verifiers", path)
module = module_from_spec(spec)
spec.loader.exec_module(module)
verifier = module.MathVerifier()


def rewards(gold, *replies):
    found = verifier(completions=list(replies), batch={"answer": [gold] * len(replies)})
    for reply, reward in zip(replies, found):
        print(f"gold {gold!r}  reply {reply!r}  reward {reward}")
    return found


gold = "9 * 2 = 18\n#### 18"
assert rewards(gold, "The answer is 18.", "The answer is 18, as asked.", "#### $18") == [1.0, 1.0, 1.0]
assert rewards(gold, "She makes 18 dollars, every day.", "It is 18 in all, not 20 less 1, as I said.") == [0.0, 0.0]
assert rewards(gold, r"\boxed{18}", r"\boxed{16}. No, 9 * 2 is \boxed{18}", "#### 16\nI forgot 2.\n#### 18") == [1.0, 0.0, 0.0]
assert rewards(gold, r"\boxed{\$18}", r"\boxed{18 \text{ dollars}}") == [0.0, 0.0]
assert rewards("1/2", "1/2", r"\boxed{1/2}", "0.5") == [0.0, 0.0, 0.0]
EOP
