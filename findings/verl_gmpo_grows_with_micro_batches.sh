#!/usr/bin/env bash
# verl's GMPO loss (loss_mode=geo_mean) has a gradient as many times too large as there are micro-batches; its KL and entropy terms have not.
# Guess: micro-batches are a matter of memory: ppo_micro_batch_size_per_gpu does not change the gradient of a mini-batch, for any loss_mode,
#   as verl says that its losses are aggregated over the global batch.
# Truth (verl 0.9.1): every other loss of the registry divides by the mini-batch's replies or tokens, and the engine adds up the gradients of the
#   micro-batches as they are. geo_mean takes the plain mean of its micro-batch, so that 8 micro-batches of one reply give 8 times the gradient of one
#   micro-batch of 8 replies: for replies, advantages and policy that are the same. The KL loss and the entropy bonus are divided rightly,
#   so that kl_loss_coef is worth an eighth. The logged actor/pg_loss is a sum over micro-batches and grows in the same way.
# Who: GMPO against GRPO or GSPO in verl: its KL penalty is weaker, and its gradients are clipped at grad_clip=1.0 more often, the less memory a
#   reply leaves, that is with long replies, large models and few GPUs; with use_dynamic_bsz it changes from step to step. Adam hides the rest.
#   One process was run here; with several the engine's mean over processes is right for geo_mean, by reading.
# Seen: the table below.
# Known: verl-project/verl#7913, open, with PR #5614; that the KL loss keeps its size is not said there.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q --no-compile torch==2.13.0 numpy==2.4.6 ray==2.60.0 omegaconf==2.4.0 codetiming==1.4.0 dill==0.4.1 packaging==26.4 transformers==5.10.0
"$tmp/v/bin/pip" install -q --no-compile --no-deps verl==0.9.1 tensordict==0.10.0 pyvers==0.2.3 orjson==3.13.0 cloudpickle==3.1.3 importlib_metadata==10.2.0 zipp==4.1.2
cd "$tmp"; OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
import torch
from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.workers.config import ActorConfig

print("verl", version("verl"), "torch", torch.__version__)
torch.manual_seed(0)
REPLIES, TOKENS = 8, 6
old, ref = -torch.rand(2, REPLIES, TOKENS)
advantages, mask = torch.randn(REPLIES, 1).expand(-1, TOKENS), torch.ones(REPLIES, TOKENS)


def gradient(loss_mode, size):
    """Of a mini-batch of 8 replies, in micro-batches of so many, as verl.workers.utils.losses.ppo_loss and the FSDP engine go about it."""
    config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=size)
    config.global_batch_info.update(dp_size=1, batch_num_tokens=REPLIES * TOKENS, global_batch_size=REPLIES, loss_scale_factor=None)
    log_prob = old.clone().requires_grad_()
    for part in torch.arange(REPLIES).split(size):
        if loss_mode == "KL loss":
            kl = kl_penalty(log_prob[part], ref[part], "k2")
            loss = agg_loss(loss_mat=kl, loss_mask=mask[part], loss_agg_mode="token-mean", **config.global_batch_info)
        else:
            loss, _ = get_policy_loss_fn(loss_mode)(old[part], log_prob[part], advantages[part], mask[part], "token-mean", config, None)
        loss.backward()
    return log_prob.grad


print(f"{'loss':10s} norm of the gradient with 1, 2, 4 and 8 micro-batches")
whole = gradient("vanilla", 8)
for mode in ("vanilla", "gspo", "cispo", "sapo", "geo_mean", "KL loss"):
    found = [gradient(mode, REPLIES // parts) for parts in (1, 2, 4, 8)]
    print(f"{mode:10s}", *(f"{x.norm():8.4f}" for x in found))
    for parts, grad in zip((1, 2, 4, 8), found):
        torch.testing.assert_close(grad, found[0] * (parts if mode == "geo_mean" else 1))
    if mode == "geo_mean":
        torch.testing.assert_close(found[0], whole)  # the ratios are all 1, so that GMPO's gradient is GRPO's
EOP
