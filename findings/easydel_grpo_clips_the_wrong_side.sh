#!/usr/bin/env bash
# EasyDeL's GRPO clips rejected replies on the wrong side: they are pushed down without a bound, and not at all once they have risen.
# Guess: the clipped objective is min(rho A, clip(rho) A) for either sign of A: where A < 0 a ratio below 1 - epsilon gets no gradient, for that reply
#   has been pushed far enough, and a ratio above 1 + epsilon keeps its own.
# Truth (easydel 0.3.0): for A < 0 it is max(rho A, clip(rho) A). The gradient goes on below 1 - epsilon, with weight rho, however small the
#   ratio has become, and is 0 above 1 + epsilon, where a bad reply has become likelier. A >= 0 is as in PPO. "grpo", "bnpo", "dr_grpo" and
#   "dapo" share the line; `clip_ratio/low_mean` counts the ratios that PPO would clip, which here are not. Seen too: `pip install
#   easydel` alone cannot import its trainers, which need torch and pillow.
# Who: runs with several updates on a batch (with one, every ratio is 1), and most of all those whose rewards are half negative, as pairs of
#   +1 and -1: half of the batch has no trust region. A comparison with another library at the same epsilon compares two objectives.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q easydel==0.3.0 jax==0.9.2 jaxlib==0.9.2 torch==2.13.0 pillow==13.0.0 numpy==2.3.5
cd "$tmp"; JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 "$tmp/v/bin/python" - 2>stderr <<'EOP' || { cat stderr; exit 1; }
from importlib.metadata import version
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from easydel.trainers.group_relative_policy_optimization._fn import grpo_step
from jax.sharding import PartitionSpec

print("easydel", version("easydel"), "jax", jax.__version__)
SIZE = 4  # of a vocabulary under a uniform policy


class Model:
    """A model whose parameters are its logits."""

    config = SimpleNamespace(lmhead_chunksize=None)
    lmhead_chunksize = None

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, input_ids=None, attention_mask=None, **more):
        return SimpleNamespace(logits=self.logits, last_hidden_state=None)


def loss(logits, ratios, advantages, loss_type):
    replies = len(advantages)
    ones, zeros = jnp.ones((replies, 1), jnp.int32), jnp.zeros((replies, 1), jnp.int32)
    batch = {"prompt_ids": zeros[:1], "prompt_mask": ones[:1], "completion_ids": zeros, "completion_mask": ones}
    batch |= {"advantages": advantages, "old_per_token_logps": (-jnp.log(SIZE * ratios))[:, None]}
    state = SimpleNamespace(graphstate=logits, merge=Model)
    how = {"loss_type": loss_type, "epsilon": 0.2, "epsilon_high": 0.2, "partition_spec": PartitionSpec()}
    return grpo_step(state, batch, num_generations=replies, beta=0.0, is_training=False, **how).loss


RATIOS = [0.01, 0.5, 0.9, 1.1, 1.5]
ratios = jnp.tile(jnp.array(RATIOS), 2)
advantages = jnp.repeat(jnp.array([1.0, -1.0]), 5)
with jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)):
    for loss_type in ("grpo", "bnpo", "dapo"):
        slope = jax.grad(loss)(jnp.zeros((10, 2, SIZE)), ratios, advantages, loss_type)[:, 0, 0]
        pushed = np.round(-np.asarray(slope, float) * 10 / (1 - 1 / SIZE), 3)  # d objective / d log p of each reply
        for sign, rows in ((1, pushed[:5]), (-1, pushed[5:])):
            print(f"{loss_type}, A = {sign:+d}: ratio, push", *zip(RATIOS, rows.tolist()))
        np.testing.assert_allclose(pushed[:5], [0.01, 0.5, 0.9, 1.1, 0], atol=2e-3)  # as PPO
        np.testing.assert_allclose(pushed[5:], [-0.01, -0.5, -0.9, -1.1, 0], atol=2e-3)
        assert not np.allclose(pushed[5:], [0, 0, -0.9, -1.1, -1.5], atol=2e-3)  # PPO's
EOP
