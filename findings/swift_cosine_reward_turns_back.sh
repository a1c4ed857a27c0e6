#!/usr/bin/env bash
# ms-swift's cosine reward turns back beyond cosine_max_len: wrong replies of twice that length are as bad as empty ones, right ones as good.
# Guess: the cosine goes from the value of length 0 to the value of cosine_max_len, and stays there for whatever is longer (the paper gives such
#   replies a penalty of their own): of two right replies the longer one never gets more. The overlong penalty ends at -1.
# Truth (ms-swift 4.6.0): the length is not limited before the cosine is taken, and the cosine has period 2 * cosine_max_len. A right reply gets 1.0 at length 0,
#   0.5 at cosine_max_len, and 1.0 again at twice as much; a wrong one -0.5, 0 and -0.5. soft_overlong is limited to 0 above but not below: -3 at
#   soft_max_length + 2 * soft_cache_length. Nothing warns. The length is that of all the turns of a reply together, while cosine_max_len defaults to
#   max_completion_length. TRL 1.16.0's get_cosine_scaled_reward limits the length (by reading).
# Who: reward_funcs cosine or soft_overlong with cosine_max_len or soft_max_length below what may be generated, or with several turns:
#   from cosine_max_len on, right replies are paid for getting longer, at the same pace at which they were paid for being short.
# Seen: the table below.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.13.2
"$tmp/v/bin/pip" install -q --no-compile --no-deps ms-swift==4.6.0
cd "$tmp"; "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
import sys
import types
from importlib.metadata import version
from importlib.util import find_spec

# The rewards alone: all of ms-swift needs torch.
root = find_spec("swift").submodule_search_locations[0]
for name in ("swift", "swift.rewards", "swift.infer_engine"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [root + name.removeprefix("swift").replace(".", "/")]
sys.modules["swift.infer_engine"].InferRequest = object  # a type in annotations
from swift.rewards.orm import orms

print("ms-swift", version("ms-swift"))
LONGEST, CACHE = 1000, 200
args = types.SimpleNamespace(cosine_min_len_value_wrong=-0.5, cosine_max_len_value_wrong=0.0, cosine_min_len_value_correct=1.0,
                             cosine_max_len_value_correct=0.5, cosine_max_len=LONGEST,  # the defaults, and a length
                             soft_max_length=LONGEST, soft_cache_length=CACHE)
lengths = [10, 500, 800, 900, 1000, 1200, 1400, 2000]
ids = [[0] * length for length in lengths]


def paid(reward, answer):
    n = len(lengths)
    return [round(x, 2) for x in orms[reward](args)(completions=[rf"\boxed{{{answer}}}"] * n, solution=["42"] * n, response_token_ids=ids)]


right, wrong, overlong = paid("cosine", "42"), paid("cosine", "41"), paid("soft_overlong", "42")
for title, values in (("tokens", lengths), ("cosine, right", right), ("cosine, wrong", wrong), ("soft_overlong", overlong)):
    print(f"{title:14s}", *(f"{value:7}" for value in values))
assert right == [1.0, 0.75, 0.55, 0.51, 0.5, 0.55, 0.67, 1.0]
assert wrong == [-0.5, -0.25, -0.05, -0.01, 0.0, -0.05, -0.17, -0.5]
assert overlong == [0, 0, 0, -0.5, -1, -2, -3, -6]
EOP
