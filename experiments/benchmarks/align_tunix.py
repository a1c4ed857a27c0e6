"""Tunix's side of `experiments.benchmarks.align`: run as a file by an interpreter that has google-tunix, nothing else.

Its arguments are a folder and a dtype (float32). Tunix 0.1.7 ignores the `rope_theta` of its Llama config; it is
patched in here, without which the model is another one.
"""

import functools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
from answers import serve
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl.algo_core import grpo_loss_fn
from tunix.rl.common import TrainExample


def load(folder: Path) -> nnx.Module:
    """SmolLM2, or another Llama with tied embeddings."""
    fields = json.loads((folder / "config.json").read_text())
    theta = fields.get("rope_theta") or fields["rope_parameters"]["rope_theta"]
    llama.apply_rope = functools.partial(llama.apply_rope, rope_theta=theta)
    config = llama.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["hidden_size"] // fields["num_attention_heads"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=theta,
        norm_eps=fields["rms_norm_eps"],
        weight_tying=fields["tie_word_embeddings"],
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return create_model_from_safe_tensors(str(folder), config, mesh=mesh, dtype=jnp.float32)


def example(batch: dict) -> TrainExample:
    """The batch in Tunix's layout: one row a completion, prompts padded on the left, tokens past the end pad."""
    k, width = batch["group_size"], max(map(len, batch["prompts"]))
    prompts = jnp.array([[0] * (width - len(ids)) + ids for ids in batch["prompts"] for _ in range(k)])
    completions = jnp.array(batch["completions"])
    mask = jnp.arange(completions.shape[1]) < jnp.array(batch["lengths"])[:, None]
    floats = {name: jnp.array(batch[name], jnp.float32) for name in ("advantages", "old_logp", "ref_logp")}
    return TrainExample(
        prompt_ids=prompts,
        prompt_mask=prompts != 0,
        completion_ids=jnp.where(mask, completions, 0),
        completion_mask=mask.astype(jnp.float32),
        advantages=floats["advantages"],
        ref_per_token_logps=floats["ref_logp"],
        old_per_token_logps=floats["old_logp"],
    )


def main() -> None:
    """Answers until the end of input."""
    folder = Path(sys.argv[1])
    batch = json.loads((folder / "batch.json").read_text())
    model, given = load(folder), example(batch)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-6), wrt=nnx.Param)

    def gradient(model: nnx.Module, given: TrainExample, name: str):
        options = {"beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2, "temperature": 1.0, "kl_clamp_value": None}
        options |= {"loss_algo": "grpo", "loss_agg_mode": "sequence-mean-token-mean", "kl_loss_mode": "low_var_kl"}
        config = SimpleNamespace(**options | batch["settings"][name]["tunix"])
        loss = functools.partial(grpo_loss_fn, algo_config=config, pad_id=0, eos_id=-1)
        (value, _), grads = nnx.value_and_grad(loss, has_aux=True)(model, given)
        return value, optax.global_norm(grads), grads

    @functools.partial(nnx.jit, static_argnames="name")
    def loss_and_norm(model, given, name):
        return gradient(model, given, name)[:2]

    @nnx.jit
    def update(model, optimizer, given):
        value, norm, grads = gradient(model, given, "grpo")
        optimizer.update(model, grads)
        return value, norm

    def step() -> float:
        start = time.perf_counter()
        jax.block_until_ready((update(model, optimizer, given), nnx.state(model)))
        return time.perf_counter() - start

    serve(loss=lambda name: tuple(map(float, loss_and_norm(model, given, name))), step=step)


if __name__ == "__main__":
    main()
