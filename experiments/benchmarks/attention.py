"""Memory and time of attention with its gradients, the form that `attend` chooses beside the one that holds all scores.

    python -m experiments.benchmarks.attention --lengths 512 4096

Temporary memory is XLA's count of the compiled program; times are medians, taken in turns. Every line printed is JSON.
"""

import functools
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    lengths: tuple[int, ...] = (512, 4096)
    """Tokens of the text."""
    rows: int = 1
    """Texts."""
    heads: int = 8
    """Query heads."""
    kv_heads: int = 8
    """Key heads."""
    head_dim: int = 64
    """Width of a head."""
    prompt: int = 0
    """Tokens of a prompt that all texts share."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of queries, keys and values."""
    repeats: int = 7
    """Timed calls of each form."""


def program(form, args: Sizes, length: int):
    """The compiled gradient of a form, its inputs, and the MiB of its temporaries."""
    import jax
    import jax.numpy as jnp

    from pairgrpo_jax.lm.models.places import KV

    def random(rows: int, heads: int, steps: int):
        return jax.random.normal(jax.random.key(steps + heads), (rows, heads, steps, args.head_dim), args.dtype)

    q = random(args.rows, args.heads, length)
    sizes = [(1, args.prompt, 0)] * bool(args.prompt) + [(args.rows, length, args.prompt)]
    pairs = [(random(rows, args.kv_heads, steps), random(rows, args.kv_heads, steps)) for rows, steps, _ in sizes]
    at = [jnp.broadcast_to(start + jnp.arange(steps), (rows, steps)) for rows, steps, start in sizes]

    def loss(q, pairs):
        places = [KV(k, v, positions) for (k, v), positions in zip(pairs, at)]
        return jnp.sum(form(q, places, at[-1], scale=args.head_dim**-0.5).astype(jnp.float32) ** 2)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(q, pairs).compile()
    memory: Any = compiled.memory_analysis()
    return functools.partial(compiled, q, pairs), memory.temp_size_in_bytes / 2**20


def main() -> None:
    """Prints one line for each length."""
    import jax

    from pairgrpo_jax.lm.models.attention import attend, plain

    args = tyro.cli(Sizes, description=__doc__)
    for length in args.lengths:
        runs, mib = zip(*(program(form, args, length) for form in (attend, plain)))
        times = []
        for _ in range(args.repeats + 1):
            times.append([])
            for run in runs:
                start = time.perf_counter()
                jax.block_until_ready(run())
                times[-1].append(time.perf_counter() - start)
        seconds = [statistics.median(x) for x in zip(*times[1:])]
        figures = {"seconds": seconds[0], "plain_seconds": seconds[1], "mib": mib[0], "plain_mib": mib[1]}
        figures |= {"time": seconds[0] / seconds[1], "memory": mib[0] / mib[1]}
        rounded = {name: float(f"{x:.4g}") for name, x in figures.items()}
        about = {"device": jax.devices()[0].device_kind, "processor": processor.label()}
        print(json.dumps(about | {"length": length} | rounded), flush=True)


if __name__ == "__main__":
    run_main(main)
