"""Narrower numbers beside float32 throughout: bytes, adapters' gradients, seconds of an update and of sampling.

    python -m experiments.benchmarks.precision

Forms are a base held as codes, products whose operands are rounded to bfloat16, and activations in bfloat16.

DPO on pairs of the tiny set, adapters as `pairgrpo align` starts them; all forms run in turns in one process, and the
least time of each counts. Every line printed is JSON.
"""

import functools
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main

Form = Literal["int8", "q8_0", "nf4", "operands", "activations"]
FORMS: dict[Form, dict[str, Any]] = {
    "int8": {"quantize": "int8"},
    "q8_0": {"quantize": "q8_0"},
    "nf4": {"quantize": "nf4"},
    "operands": {"operands": "bfloat16"},
    "activations": {"compute_dtype": "bfloat16"},
}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    model: str = "smollm2"
    """As of `pairgrpo align`."""
    pairs: int = 16
    """Pairs of an update."""
    repeats: int = 5
    """Timed calls of each form."""
    new_tokens: int = 16
    """Of one sample of each pair's prompt."""
    forms: tuple[Form, ...] = tuple(FORMS)
    """What is measured beside float32."""


def form(args: Sizes, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What can be timed of a model loaded with `options`, and its bytes, temporaries and adapters' gradient."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pairgrpo_jax import core
    from pairgrpo_jax.lm import load_model
    from pairgrpo_jax.lm.alignment import encode_pairs, pair_batch, tuned
    from pairgrpo_jax.lm.alignment.parameters import init_trainable
    from pairgrpo_jax.lm.alignment.signals import learning_signal
    from pairgrpo_jax.lm.alignment.updates import make_loss, make_optimizer, make_update
    from pairgrpo_jax.lm.data import load_preferences
    from pairgrpo_jax.lm.models.generation import generate
    from pairgrpo_jax.methods import Adaptive
    from pairgrpo_jax.training import TrainState
    from pairgrpo_jax.training.cost import bytes_on_a_device

    model = load_model(args.model, **options)
    config, skeleton = tuned("dpo").replace(prompts=args.pairs), model.skeleton
    limits = (config.texts.prompt_tokens, config.texts.completion_tokens)
    pairs = encode_pairs(model, load_preferences("tiny").rows, *limits)[: args.pairs]
    adaptive, key = Adaptive(jnp.zeros((), jnp.int32), jnp.ones(())), jax.random.key(0)
    batch = jax.tree.map(jnp.asarray, pair_batch(pairs, *limits))
    batch = batch._replace(ref_logp=jnp.zeros(batch.completions.shape))
    batch = learning_signal(config, batch, None, core.chosen_rejected_pairs(len(pairs)), key, adaptive)
    optimizer = make_optimizer(config, 10)
    state = TrainState.create(init_trainable(config, model, key), optimizer, key)

    def loss(trained, params):
        return make_loss(config, skeleton, params, adaptive)(trained, batch)["surrogate"].mean

    slope = jax.jit(jax.grad(loss))(state.params, model.params)
    slope = np.concatenate([np.ravel(x) for x in jax.tree.leaves(slope)]).astype(np.float64)
    update = jax.jit(make_update(config, skeleton, optimizer))
    prompts, how = [pair.prompt for pair in pairs], {"max_new_tokens": args.new_tokens, "key": key, "stop_ids": (-1,)}
    runs = {
        "update": functools.partial(update, state, model.params, batch),
        "sampling": functools.partial(generate, model, model.params, prompts, **how),
    }
    memory: Any = update.lower(state, model.params, batch).compile().memory_analysis()
    return runs, (bytes_on_a_device(model.params), memory.temp_size_in_bytes, slope)


def main() -> None:
    """Prints a line for each form."""
    import jax
    import numpy as np

    args = tyro.cli(Sizes, description=__doc__)
    forms: dict[str, dict[str, Any]] = {"float32": {}} | {name: FORMS[name] for name in args.forms}
    runs, found = zip(*(form(args, options) for options in forms.values()))
    seconds: list[dict[str, list[float]]] = [{name: [] for name in x} for x in runs]
    for turn in range(args.repeats + 1):
        for times, programs in zip(seconds, runs):
            for name, program in programs.items():
                start = time.perf_counter()
                jax.block_until_ready(program())
                times[name] += [time.perf_counter() - start] if turn else []
    least = [{name: min(x) for name, x in times.items()} for times in seconds]
    about = {"device": jax.devices()[0].device_kind, "processor": processor.label()}
    size, _, slope = found[0]
    for what, times, (held, temporary, other) in zip(forms, least, found):
        cosine = other @ slope / np.linalg.norm(other) / np.linalg.norm(slope)
        figures = {"mib": held / 2**20, "bytes": held / size, "update_temporary_mib": temporary / 2**20}
        figures |= {"cosine": cosine, **{f"{name}_seconds": x for name, x in times.items()}}
        figures |= {f"{name}_time": x / least[0][name] for name, x in times.items()}
        print(json.dumps(about | {"form": what} | {k: float(f"{v:.4g}") for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    run_main(main)
