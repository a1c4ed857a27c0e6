"""Compares methods on HalfCheetah over several seeds: `python -m experiments.compare --help`.

Each (method, seed) is one run of `pairgrpo cheetah` in a folder of its own; finished ones are not made
again, so a long comparison can be made in pieces. Prints a Markdown table and draws the curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import tyro
from rich.console import Console

from experiments.plots import comparison
from pairgrpo_jax.commands import cheetah
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.commands.runs import complete, finished_metrics
from pairgrpo_jax.control import ControlConfig, tuned
from pairgrpo_jax.control.config import Advantage
from pairgrpo_jax.core.statistics import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    noise_variance,
    probability_of_improvement,
    relative_noise_variance,
)

_RADIUS = 0.03  # of Hard's tuned trust region, in nats; shown for all methods alike


@dataclass(frozen=True)
class Comparison:
    """What to compare."""

    methods: tuple[str, ...] = ("ppo:value", "grpo:value", "rank:value", "soft:value", "hard:value")
    """Methods as algorithm:advantage, each with its tuned settings; or algorithm:advantage:scheme, with another pair
    scheme and no margin. The first is the baseline."""
    env: str = "mujoco"
    """Simulator, as in pairgrpo cheetah."""
    steps: float = 3e6
    """Budget of each run, environment steps."""
    seeds: int = 5
    """Runs per method, with seeds 0, 1, ..."""
    output: Path = Path("runs/compare")
    """Folder of all runs."""
    report_only: bool = False
    """Make no runs; report on those that are finished."""


def main() -> int | None:
    """Makes the runs that are missing and reports."""
    args = tyro.cli(Comparison, description=__doc__)
    console = Console()
    for method in args.methods:
        parse(method)
    if not args.report_only:
        for seed in range(args.seeds):
            for method in args.methods:
                code = complete(cheetah, run_of(args, method, seed), f"{method}, seed {seed}", console)
                if code:
                    return code
    report(args, console)
    return None


def parse(method: str) -> ControlConfig:
    """`"hard:value"`, or `"soft:value:margin_weighted"` -> tuned settings; ValueError for anything else."""
    algo, _, rest = method.partition(":")
    advantage, named, scheme = rest.partition(":")
    if algo not in cheetah.ONLINE or advantage not in get_args(Advantage):
        raise ValueError(f"methods: {method!r} is unknown; write method:advantage[:scheme], such as hard:value")
    try:
        config = tuned(algo, advantage)
        if named and not config.has("scheme"):
            raise ValueError("it makes no pairs")
        config = config.replace(scheme=scheme, margin=0.0) if named else config
    except ValueError as error:
        raise ValueError(f"methods: {method!r}: {error}") from error
    return config


def folder(args: Comparison, method: str, seed: int) -> Path:
    """Where a run lives."""
    return args.output / args.env.replace(":", "-") / method.replace(":", "-") / f"{args.steps:.0f}" / f"seed{seed}"


def run_of(args: Comparison, method: str, seed: int) -> cheetah.Run:
    """The run of a method and seed."""
    path = folder(args, method, seed)
    return cheetah.Run(
        env=args.env,
        steps=args.steps,
        seed=seed,
        output=path,
        resume=path.exists(),
        video_steps=0,
        config=parse(method),
    )


def report(args: Comparison, console: Console) -> None:
    """Prints the table and draws the curves."""
    runs = {method: [run_of(args, method, seed) for seed in range(args.seeds)] for method in args.methods}
    runs = {method: finished_metrics(of) for method, of in runs.items()}
    runs = {method: rows for method, rows in runs.items() if rows}
    if not runs:
        raise ValueError(f"output: no finished run in {args.output}; leave out --report-only")
    scores = {method: np.array([np.mean(rows[-1]["score"]) for rows in of]) for method, of in runs.items()}
    baseline = scores[next(iter(scores))]
    columns = (
        "method",
        "return, IQM [95% interval]",
        "stochastic policy",
        f"P(beats {next(iter(scores))}) [95%]",
        "KL noise std",
    )
    columns += ("KL noise std", f"KL ≤ {2 * _RADIUS} nats", "grad-norm noise variance / mean²", "steps/s", "seeds")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method, of in runs.items():
        lines.append(_line(method, scores[method], of, baseline))
    table = "\n".join(lines)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "table.md").write_text(table + "\n")
    console.print(table, highlight=False, soft_wrap=True, markup=False)
    comparison(runs, args.output / "curves.png", f"HalfCheetah, {args.env}, {args.steps:,.0f} steps")
    console.print(f"\ncurves in {args.output / 'curves.png'}, table in {args.output / 'table.md'}", highlight=False)


def interval(low: float, high: float, form: str) -> str:
    """` [low, high]`, or nothing where one run gives none."""
    return "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"


def _line(method: str, scores: np.ndarray, runs: list[list[dict]], baseline: np.ndarray) -> str:
    low, high = interquartile_interval(scores)
    stochastic = interquartile_mean(np.array([np.mean(rows[-1]["stochastic_score"]) for rows in runs]))
    kls = np.array([[np.mean(row["realised_kl"]) for row in rows] for rows in runs])
    within = np.mean(kls <= 2 * _RADIUS)
    norms = [np.array([np.mean(row["grad_norm"]) for row in rows]) for rows in runs]
    variance = np.mean([relative_noise_variance(norm) for norm in norms])
    worse, better = improvement_interval(scores, baseline)
    speed = np.median([rows[-1]["steps"] / rows[-1]["seconds"] for rows in runs])
    cells = (
        method,
        f"**{interquartile_mean(scores):.0f}**" + interval(low, high, ".0f"),
        f"{stochastic:.0f}",
        f"{probability_of_improvement(scores, baseline):.2f}" + interval(worse, better, ".2f"),
        f"{np.mean(np.sqrt(noise_variance(kls))):.4f}",
        f"{within:.0%}",
        f"{variance:.3f}",
        f"{speed:,.0f}",
        str(len(scores)),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_main(main)
