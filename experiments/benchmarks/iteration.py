"""A whole iteration of GRPO, ours and TRL's: samples, rewards, gradient, update.

    python -m experiments.benchmarks.iteration --peer-python /path/to/python
    python -m experiments.benchmarks.iteration --peer-python /path/to/python --adapters full

The peer's interpreter needs torch, trl and peft. Both sides are processes of their own that take turns on one machine,
with the same weights, prompts, reward and settings: float32, one update a batch, no penalty towards the reference. Each
draws its own completions; prompts are such that nearly all of these are cut off at the last token. Every line printed
is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import tyro

from experiments.benchmarks.align import in_turns, report, started
from experiments.benchmarks.answers import serve
from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.alignment import (
    Adapters,
    AlignConfig,
    AlignOptimizer,
    Data,
    EncodedPrompt,
    Samples,
    Texts,
    make_trainer,
)
from pairgrpo_jax.lm.rewards.sources import reward_function
from pairgrpo_jax.methods import Grpo

PROMPTS = (
    "The old house by the river had not been lived in for years, and",
    "In the year 1905 a young man came to the city, where",
    "My grandmother told me that long ago the people of the village",
    "The most important thing to know about the history of the sea is",
)


@dataclass(frozen=True)
class Comparison:
    """What to run."""

    peer_python: Path = Path(sys.executable)
    """Interpreter that has TRL."""
    model: str = "smollm2"
    """As in pairgrpo align."""
    adapters: Literal["lora", "full"] = "lora"
    """Train LoRA adapters of rank 16 on attention, or all parameters."""
    samples: int = 8
    """K."""
    new_tokens: int = 64
    """Longest completion."""
    rate: float = 1e-6
    """Adam's: so small that lengths stay those of the model."""
    repeats: int = 5
    """Timed iterations of each side, in turns. One more goes before each, untimed: after a pause caches are cold."""
    ours: Path | None = None
    """Not for the command line: be our side, on this folder."""


def make_ours(args: Comparison, folder: Path):
    """Our trainer, as `pairgrpo align` makes it."""
    model = load_model(folder)
    ids = [list(row) for row in model.tokenizer(list(PROMPTS))["input_ids"]]
    config = AlignConfig(
        Grpo(),
        Samples(candidates=args.samples),
        Texts(len(PROMPTS), max(map(len, ids)), args.new_tokens),
        AlignOptimizer(epochs=1, learning_rate=args.rate, warmup=0),
        adapters=Adapters() if args.adapters == "lora" else Adapters(lora_rank=0),
    )
    rows = [EncodedPrompt(({"role": "user", "content": text},), row) for text, row in zip(PROMPTS, ids)]
    reward = reward_function(lambda prompts, groups: [[float(len(set(text))) for text in group] for group in groups])
    return make_trainer(config, model, Data(rows), reward, iterations=1000)


def answer_as_ours(args: Comparison, folder: Path) -> None:
    """Our side: seconds of an iteration, and the mean length of its completions."""
    trainer = make_ours(args, folder)
    state = trainer.init(jax.random.key(0))

    def iteration() -> tuple[float, float]:
        nonlocal state
        start = time.perf_counter()
        state, metrics = trainer.iterate(state, 1)
        jax.block_until_ready(state)
        return time.perf_counter() - start, float(metrics["length"][0])

    serve(iteration=iteration)


def commands(args: Comparison, folder: Path) -> tuple[list[str], list[str]]:
    """What starts our side and the peer, which is told its settings in `folder`."""
    told = {"prompts": PROMPTS, "samples": args.samples, "new_tokens": args.new_tokens, "rate": args.rate}
    (folder / "iteration.json").write_text(json.dumps(told | {"adapters": args.adapters}))
    mine = [sys.executable, "-m", "experiments.benchmarks.iteration", "--ours", str(folder)]
    for name in ("adapters", "samples", "new_tokens", "rate"):
        mine += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return mine, [str(args.peer_python), str(Path(__file__).with_name("iteration_trl.py")), str(folder)]


def compare(args: Comparison, folder: Path) -> None:
    """Prints seconds, tokens and peak memory of both."""
    with started(*commands(args, folder), folder) as both:
        turns = in_turns(both, "iteration", args.repeats)
        memory = [side.ask("memory") for side in both]
    (mine, length), (theirs, peer_length) = ([statistics.median(x) for x in zip(*side)] for side in zip(*turns))
    report(adapters=args.adapters, seconds=mine, peer_seconds=theirs, ratio=theirs / mine)
    report(length=length, peer_length=peer_length)
    report(peak_mib=memory[0], peer_peak_mib=memory[1], memory_ratio=memory[0] / memory[1])


def main() -> None:
    """Writes the weights that both read, and compares."""
    args = tyro.cli(Comparison, description=__doc__)
    if args.ours is not None:
        answer_as_ours(args, args.ours)
        return
    with tempfile.TemporaryDirectory() as name:
        report(processor=processor.label())
        model = load_model(args.model)
        save_pretrained(model, model.params, Path(name))
        del model
        compare(args, Path(name))


if __name__ == "__main__":
    run_main(main)
