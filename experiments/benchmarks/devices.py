"""The same run on as many devices of one, two and four processes; and how two processes beside each other scale.

    python -m experiments.benchmarks.devices layouts --task align --model smollm2 --mesh fsdp
    python -m experiments.benchmarks.devices layouts --task halfcheetah --method hard
    python -m experiments.benchmarks.devices weak

`layouts` compares every metric of four iterations to that of one process, and exits with 1 where one is further away
than 1e-5, relative or absolute. What only the evaluation at the end has is told apart: episodes of 1,000 steps make
anything of a rounding error. `weak` needs two cores, and Linux. Every line printed is JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.benchmarks.resume import finish, launch, rows
from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.training import read_metrics

PLAIN = "--resample 0 --lora-targets q k v o"  # every batch is the same work
ALIGN = f"{PLAIN} --prompts 8 --candidates 4 --completion-tokens 12 --iterations 4 --save-every 4 --evaluations 1"
ALIGN += " --prompt-tokens 128 --evaluation-prompts 8 --evaluation-samples 1 --shown 1 --no-export --learning-rate 1e-4"
CHEETAH = "--env brax:spring --groups 8 --candidates 4 --horizon 20 --epochs 1 --minibatches 4 --hidden 32"
CHEETAH += " --steps 2560 --evaluations 1 --episodes 8 --save-every 4 --video-steps 0"


@dataclass(frozen=True)
class Layouts:
    """Which run."""

    task: Literal["align", "halfcheetah"] = "align"
    """Which command line."""
    method: str = "hard"
    """Method."""
    mesh: Literal["data", "fsdp"] = "data"
    """Of align."""
    model: str = "smollm2"
    """Of align: a folder, a hub id, or smollm2."""
    devices: int = 8
    """Of all processes together."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Each divides the devices; the first is what the others are compared to."""


@dataclass(frozen=True)
class Weak:
    """Tokens a second of one process on one core, of two with twice the prompts, and of two runs of one each."""

    method: str = "grpo"
    """Method."""
    model: str = "smollm2"
    """A folder, a hub id, or smollm2."""
    mesh: Literal["data", "fsdp"] = "data"
    """How two share parameters."""
    prompts: int = 4
    """Of one process."""
    iterations: int = 6
    """The first, which compiles, does not count."""
    rounds: int = 2
    """All in turns, so often; the best of each counts."""


Which = Annotated[Layouts, tyro.conf.subcommand("layouts")] | Annotated[Weak, tyro.conf.subcommand("weak")]


def main() -> int:
    """Runs; returns the exit code."""
    args = tyro.cli(Which, description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    print(json.dumps({"processor": processor.label()}), flush=True)
    return compare_layouts(args) if isinstance(args, Layouts) else weak_scaling(args)


def compare_layouts(args: Layouts) -> int:
    """Prints how far each layout is from the first."""
    words = [f"experiments.{args.task}", args.method]
    if args.task == "align":
        words += [*ALIGN.split(), "--model", args.model, "--mesh", args.mesh]
    else:
        words += [*CHEETAH.split(), "--mesh", "data"]
    worst, first = 0.0, None
    with tempfile.TemporaryDirectory() as folder:
        for n in args.processes:
            output = Path(folder) / f"{n}"
            finish(launch(words, output, n, args.devices // n))
            found = rows(output)
            first = found if first is None else first
            always = found[0].keys()
            far = distances(first, found, always)
            worst = max(worst, *far.values())
            told: dict[str, Any] = {"processes": n, "devices": args.devices // n, "iterations": len(found)}
            told |= {"metrics": len(found[-1]), "furthest": most(far)}
            told["evaluation"] = most(distances(first, found, found[-1].keys() - always))
            print(json.dumps(told), flush=True)
    return 0 if worst <= 1e-5 else 1


def distances(here: list[dict], there: list[dict], names: Collection[str]) -> dict[str, float]:
    """By how much each metric differs at most, relative to its size where that is above 1."""
    far: dict[str, float] = {}
    for one, other in zip(here, there, strict=True):
        for name in names & one.keys():
            x, y = (np.asarray(row[name], float) for row in (one, other))
            same = np.isnan(x) & np.isnan(y)
            distance = np.where(same, 0, np.abs(x - y) / np.maximum(np.abs(x), 1))
            far[name] = max(far.get(name, 0.0), float(distance.max(initial=0)))
    return far


def most(far: dict[str, float]) -> dict[str, float]:
    """The three metrics that differ most."""
    return dict(sorted(far.items(), key=lambda item: -item[1])[:3])


def weak_scaling(args: Weak) -> int:
    """Prints tokens a second of one process, of two together, and of two that do not know of each other."""
    words = f"experiments.align {args.method} {PLAIN} --candidates 8 --completion-tokens 16 --save-every 1000".split()
    words += f"--iterations {args.iterations} --evaluations 1 --evaluation-prompts 2 --evaluation-samples 1".split()
    words += ["--shown", "1", "--no-export", "--model", args.model, "--prompts"]
    alone, twice = [*words, str(args.prompts)], [*words, str(2 * args.prompts), "--mesh", args.mesh]
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(args.rounds):
            folders = {way: Path(name) / f"{way}{turn}" for way in ("one", "together", "apart", "other")}
            finish(launch(alone, folders["one"], 1, 1, 0))
            finish(launch(twice, folders["together"], 2, 1, 0))
            finish(launch(alone, folders["apart"], 1, 1, 0) + launch(alone, folders["other"], 1, 1, 1))
            speeds = {way: tokens_a_second(folder) for way, folder in folders.items()}
            speeds["apart"] += speeds.pop("other")
            print(json.dumps({f"{way}_tokens_per_second": round(x, 1) for way, x in speeds.items()}), flush=True)
            best = {way: max(best.get(way, 0.0), x) for way, x in speeds.items()}
    shares = {f"{way}_of_twice_one": round(best[way] / (2 * best["one"]), 3) for way in ("together", "apart")}
    print(json.dumps(shares | {"together_of_apart": round(best["together"] / best["apart"], 3), "goal": 0.9}))
    return 0


def tokens_a_second(output: Path) -> float:
    """Of the fastest iteration but the first: its replies' tokens by its parts' seconds, evaluations left out."""

    def seconds(row: dict) -> float:
        return sum(value for name, value in row.items() if name.startswith("time/") and name != "time/evaluation")

    return max(row["tokens"] / seconds(row) for row in read_metrics(output)[1:])


if __name__ == "__main__":
    run_main(main)
