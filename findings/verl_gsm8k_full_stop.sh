#!/usr/bin/env bash
# verl's GSM8K reward pays 0 for a right answer with a full stop: numbers are compared as text, and the stop belongs to the number.
# Guess: "#### 18.", "The answer is 18." and "$1,018" are 18, 18 and 1018; the commas and dollars that its code strips are forgiven.
# Truth (verl 0.9.1): strict, the default, takes digits, points and commas after "#### ": "18." is not "18", nor is "18.00"; "#### $18" has no
#   match at all, so that the dollar is never there to be stripped. flexible strips nothing: "18.", "18," and "1,018" are all wrong.
#   By reading, not run: SkyRL-Gym 0.3.0 has the same expressions.
# Who: GSM8K with verl's default reward: right answers that end a sentence, are written with cents, or with a dollar after "####" teach
#   that they are wrong, and figures are not those of other harnesses; with flexible, so do all numbers over 999 that have a comma.
# Known: verl-project/verl#2150 measured the low accuracies and blames the "####"; #7274 is about the 300 characters that are looked at.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-deps verl==0.9.1
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import importlib.util
from importlib.metadata import files, version
print("verl", version("verl"))
path = next(x.locate() for x in files("verl") if str(x).endswith("reward_score/gsm8k.py"))  # the one file: the package needs torch and ray
spec = importlib.util.spec_from_file_location("gsm8k", path)
gsm8k = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gsm8k)
CASES = [("#### 18", "18", 1), ("#### 18.", "18", 0), ("#### 18.00", "18", 0), ("#### $18", "18", 0), ("#### 1,018", "1018", 1)]
LOOSE = [("The answer is 18", "18", 1), ("The answer is 18.", "18", 0), ("She makes $18, every day.", "18", 0), ("In all 1,018", "1018", 0)]
assert gsm8k.compute_score("#### 18.", "18") == gsm8k.compute_score("The answer is 18", "18") == 0  # the default is strict
for method, cases in (("strict", CASES), ("flexible", LOOSE)):
    for reply, truth, paid in cases:
        found = gsm8k.compute_score(reply, truth, method)
        print(f"{method:9s} {reply!r:28s} reads {gsm8k.extract_solution(reply, method)!r:8} truth {truth!r:7} reward {found}")
        assert found == paid
EOP
