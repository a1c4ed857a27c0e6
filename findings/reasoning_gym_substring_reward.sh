#!/usr/bin/env bash
# reasoning-gym pays a wrong number that contains the right digits more than a right sentence.
# Guess: chain_sum's score_answer gives a wrong number 0, and a right answer in words at least as much as a wrong number.
# Truth (reasoning-gym 0.1.25): an answer that is not the number itself gets len(right) / len(given) if the right digits are anywhere in it.
#   For "1 + 5 =", "16" and "60" get 0.5, "The answer is 6" 0.067 and "The answer is 7" 0. So it is in all of 500 one-digit sums.
# Who: RL with the package's own scorer on raw completions: putting a digit before the answer beats writing a sentence round it, and a mean
#   reward of 0.5 can mean that no answer is right. Extract the number first, and count only 1.0 as right.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q reasoning-gym==0.1.25
"$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
import reasoning_gym
print("reasoning-gym", version("reasoning-gym"))
data = reasoning_gym.create_dataset("chain_sum", size=500, seed=42, min_terms=2, max_terms=2, min_digits=1, max_digits=1)
entry = next(e for e in data if e["question"].endswith(" 1 + 5 ="))
print(repr(entry["question"]), "answer", entry["answer"])
pay = {a: data.score_answer(a, entry) for a in ("6", "16", "60", "The answer is 6", "The answer is 7", "7")}
print({a: round(p, 3) for a, p in pay.items()})
assert pay["6"] == 1 and pay["16"] == pay["60"] == 0.5 and 0 < pay["The answer is 6"] < 0.07 and pay["7"] == pay["The answer is 7"] == 0
wrong, right = ([data.score_answer(before + e["answer"], e) for e in data] for before in ("1", "The answer is "))
more = sum(w > r for w, r in zip(wrong, right))
print(f"of {len(data)}: a 1 before the answer pays more than the right sentence in {more}; means {sum(wrong) / 500:.3f} and {sum(right) / 500:.3f}")
assert more == 500 and sum(wrong) / 500 >= 0.5 > 0.2 > sum(right) / 500
EOF
