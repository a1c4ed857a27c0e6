#!/usr/bin/env bash
# Four of reasoning-gym's tasks pay one and the same reply nearly everything in nearly every problem.
# Guess: score_answer is a verifier: a reply that was made without the problem gets about nothing, or the share of a lucky guess (a half of
#   yes or no questions), whatever partial credit there is.
# Truth (reasoning-gym 0.1.25): puzzle24 asks for 24 from four given numbers and looks only for any four numbers of 1..10, so 1*2*3*4 gets
#   1.0 in every problem. game_of_life_halting compares bool(text) with bool(text), and "False" is a non-empty text too: any reply gets
#   1.0. coin_flip pays the share of leading characters up to the shorter one's end, so 0 is wholly right where the answer is 0.375.
#   game_of_life pays by the cell, and nearly all are dead: an empty board gets 0.96.
# Who: a mix of tasks as RL environment: such a task saturates at once and looks learnt, its prompts are wasted from then on (all rewards
#   of a group are equal), and an average score over tasks is up by what was not learnt. Score a constant, the question and another
#   problem's answer before training on a task.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q reasoning-gym==0.1.25
cd "$tmp"; "$tmp/v/bin/python" - <<'EOF'
from importlib.metadata import version
import reasoning_gym
print("reasoning-gym", version("reasoning-gym"))
board = str([[0] * 10] * 10)

def mean(name, reply, count=200):
    data = reasoning_gym.create_dataset(name, size=count, seed=1)
    entries = [data[i] for i in range(count)]
    scores = [float(data.score_answer(reply, entry)) for entry in entries]
    answers = {str(entry["answer"]) for entry in entries}
    print(f"{name:22s} {reply[:24]!r:28s} mean {sum(scores) / count:.3f}, 1.0 in {sum(x == 1 for x in scores):3d} of {count} problems "
          f"with {len(answers):3d} different answers")
    return sum(scores) / count, sum(x == 1 for x in scores), answers

assert mean("puzzle24", "1*2*3*4")[:2] == (1.0, 200)
for reply in ("True", "False", "I do not know."):
    score, right, answers = mean("game_of_life_halting", reply)
    assert (score, right, answers) == (1.0, 200, {"True", "False"})
score, right, answers = mean("coin_flip", "0")
assert score > 0.9 and right > 180 and "0" not in answers
assert mean("game_of_life", board, 100)[0] > 0.95
assert mean("chain_sum", "10")[0] < 0.1 and mean("puzzle24", "24*1*1*1")[0] < 0.1  # most tasks are not so; 24 is above 10
EOF
