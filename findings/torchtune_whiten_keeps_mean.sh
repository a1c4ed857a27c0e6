#!/usr/bin/env bash
# torchtune's PPO divides advantages by their deviation and adds their mean back: the worse of two replies is pushed up as well.
# Guess: `estimate_advantages`, which says it normalises, returns advantages of mean 0 and deviation 1, as `whiten` of TRL 0.9.6 did, whose code is
#   named as the source; `whiten(shift_mean=True)` takes the mean away.
# Truth (torchtune 0.6.1): shift_mean=True, the default, adds the mean back; False takes it away, the opposite of TRL's argument of that
#   name. `estimate_advantages` calls the default: returns of 1 and 3 become advantages of about 1.1 and 2.9, both positive, where 1 and -1
#   (times 0.91) were meant. Where all rewards of a batch are positive and the critic is not yet trained, every sampled token is made likelier.
# Who: PPO recipes of torchtune and whoever compares with them: the sign of an advantage does not say better or worse than the
#   batch. With a trained critic the mean is small, and it hides.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 torchtune==0.6.1 torchdata==0.11.0 torchao==0.13.0 datasets==5.2.0
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version

import torch
from torchtune import rlhf

print("torchtune", version("torchtune"), "torch", torch.__version__)
x = torch.tensor([[2.0, 3.0, 4.0]])
kept, taken = rlhf.whiten(x), rlhf.whiten(x, shift_mean=False)
print("whiten([2, 3, 4])", kept.tolist(), "shift_mean=False", taken.tolist())
assert torch.allclose(kept.mean(), torch.tensor(3.0)) and abs(taken.mean()) < 1e-6

values = torch.zeros(2, 3)  # a critic that has learnt nothing yet
rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
for masks in (None, torch.ones(2, 3, dtype=torch.bool)):
    advantages, returns = rlhf.estimate_advantages(values, rewards, 1.0, 1.0, masks=masks)
    print("returns", returns[:, 0].tolist(), "advantages", [round(a, 2) for a in advantages[:, 0].tolist()])
    assert (advantages > 0).all() and abs(float(advantages.mean()) - 2.0) < 1e-4
EOP
