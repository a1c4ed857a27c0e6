#!/usr/bin/env bash
# verl's KL penalty lets go of a token once the policy finds it 14 times less likely than the reference: the gradient jumps from -12 to 0.
# Guess: low_var_kl (k3) pulls the harder the further a token's log-probability has fallen; a clamp "for numerical stability" acts where exp
#   would overflow, at 88 nats, or at 20 as the line above it says.
# Truth (verl 0.9.1): the value is clamped to 10, and a clamp has no gradient beyond. exp(x) - x - 1 is 10 at x = 2.61 nats: up to there the
#   pull is 1 - exp(x), -12.5 at 2.6, and from 2.62 on exactly 0, for ever. k2 has no clamp (-5 at 5 nats), nor "k3+", k3's value with k2's gradient.
#   By reading, not run: SkyRL 0.3.0 has the same
#   two lines, OpenRLHF 0.11.2 clamps k1, k2 and k3 to 10, so that k2 lets go at 4.47 nats.
# Who: training with use_kl_loss on the usual low_var_kl: tokens that have fallen 14-fold, those the penalty is there for, are
#   held by nothing, and the metric reads 10 for each, however far. A comparison of estimators or of beta across libraries is not one.
# Known: verl-project/verl#2928 asks about the lower bound, -10, only.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q torch==2.13.0 numpy==2.4.6 ray==2.60.0 omegaconf==2.4.0 codetiming==1.4.0 dill==0.4.1 packaging==26.4 transformers==5.10.0
"$tmp/v/bin/pip" install -q --no-deps verl==0.9.1 tensordict==0.10.0 pyvers==0.2.3 orjson==3.13.0 cloudpickle==3.1.3 importlib_metadata==10.2.0 zipp==4.1.2
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import torch
from verl.trainer.ppo.core_algos import kl_penalty
print("verl", version("verl"), "torch", torch.__version__)
FALLEN = torch.tensor([0.5, 2.0, 2.6, 2.62, 5.0, 15.0])  # log pi_ref - log pi of one token each

def penalty(kind):
    """Its values, and their gradients by log pi."""
    logp = (-FALLEN).requires_grad_()
    value = kl_penalty(logp, torch.zeros_like(FALLEN), kind)
    value.sum().backward()
    return value.detach(), logp.grad

print(f"{'nats below the reference':26s}", [round(x, 2) for x in FALLEN.tolist()])
for kind in ("low_var_kl", "k2", "k3+"):
    value, slope = penalty(kind)
    print(f"{kind:12s} value        ", [round(x, 2) for x in value.tolist()])
    print(f"{kind:12s} gradient     ", [round(x, 2) + 0 for x in slope.tolist()])
value, slope = penalty("low_var_kl")
assert torch.allclose(slope[:3], 1 - FALLEN[:3].exp()) and slope[2] < -12 and not slope[3:].any() and (value[3:] == 10).all()
assert torch.allclose(penalty("k2")[1], -FALLEN) and torch.allclose(penalty("k3+")[1], -FALLEN)
EOP
