"""Compares methods on the default job of `pairgrpo align`, sums of one digit: `python -m experiments.sums --help`.

Each (method, seed) is one run of `pairgrpo align` and leaves one small file in `results`; interrupted ones go on.
`tune` tries the same learning rates for each method, on seeds that no comparison counts. What counts is the share of
held-out problems, which no batch contains, that are answered rightly by one sampled reply (pass@1).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from experiments.grid import Cell, Grid, carry_out
from experiments.plots import success
from pairgrpo_jax.commands import align, cli
from pairgrpo_jax.commands.comparison import compared, interval, markdown
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.statistics import (
    interquartile_interval,
    interquartile_mean,
)
from pairgrpo_jax.core.terms import did_you_mean
from pairgrpo_jax.lm.alignment import AlignConfig
from pairgrpo_jax.methods import METHODS

RATES = (3e-4, 1e-3, 3e-3)
"""Adam's step size; every method tries each."""
ONLINE = tuple(method.name for method in METHODS if method.online)
GOAL = 0.9
"""Share of right answers whose time is reported."""


@dataclass(frozen=True)
class Sums(Grid):
    """What to compare."""

    methods: tuple[str, ...] = ("grpo", "ppo", "soft", "hard")
    """Online methods, each with its settings for sums. The first is the baseline."""
    seeds: Annotated[int, AtLeast(1)] = 5
    """Runs per method (tune: per trial)."""
    iterations: Annotated[int, AtLeast(1)] = align.preset("hard").iterations
    """Batches of each run."""
    evaluations: Annotated[int, AtLeast(1)] = align.preset("hard").evaluations
    """Evaluations of each run."""
    output: Path = Path("runs/sums")
    """Folder of the runs, with their checkpoints; can be removed once all are finished."""
    results: Path = Path("docs/results/sums")
    """Folder of the results, one file a run."""

    program: ClassVar[Any] = align
    budget: ClassVar[str] = "iterations"
    kept: ClassVar[tuple[str, ...]] = (
        *("iteration", "steps", "seconds", "reward", "kl_ref", "length", "grad_norm"),
        *("score", "held_out/verify:own/low", "held_out/verify:own/high", "kl_reference", "reply_tokens"),
    )

    def config(self, method: str) -> AlignConfig:
        """A method's settings for sums; ValueError for one that does not sample."""
        config = align.preset(method).config if method in align.LABELS else None
        if config is None or not config.online:
            hint = did_you_mean(method, ONLINE, f"choose among {', '.join(ONLINE)}")
            raise ValueError(f"methods: {method!r} samples nothing; {hint}")
        return config

    def trials(self, method: str) -> list[dict[str, Any]]:
        """`RATES`."""
        return [{"learning_rate": rate} for rate in RATES]

    @property
    def folders(self) -> tuple[str, ...]:
        """`("40",)`."""
        return (str(int(self.iterations)),)

    def run(self, cell: Cell, config: AlignConfig, output: Path) -> align.Run:
        """The run of a cell in a folder."""
        changes = {"iterations": int(self.iterations), "evaluations": self.evaluations, "seed": cell.seed}
        changes |= {"output": output, "resume": output.exists(), "export": False, "config": config}
        return align.preset(cell.method).replace(**changes)


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one of them could not be finished."""
    args = cli.parse(Sums(), sys.argv[1:], "python -m experiments.sums", __doc__)
    return carry_out(args, success, f"sums of one digit, {args.iterations} batches", table_of)


def table_of(rows: dict[str, list[list[dict]]]) -> str:
    """A Markdown table of methods, each with the metrics of its runs; the first is the baseline."""
    columns = ("held-out pass@1 %, IQM [95% interval]", "P(beats {first}) [95% interval]")
    columns += (
        "KL to the start, nats a reply",
        "reply tokens",
        f"runs at {GOAL:.0%}, after batches",
        "minutes",
        "seeds",
    )
    return markdown(compared(rows, columns, _figures))


def _figures(scores: np.ndarray, runs: list[list[dict]], beats: str) -> tuple[str, ...]:
    low, high = interquartile_interval(100 * scores)
    reached = [at for metrics in runs if (at := _reached(metrics)) is not None]
    return (
        f"**{100 * interquartile_mean(scores):.1f}**" + interval(low, min(high, 100.0), ".1f"),
        beats,
        f"{np.mean([metrics[-1]['kl_reference'] for metrics in runs]):.1f}",
        f"{np.mean([metrics[-1]['reply_tokens'] for metrics in runs]):.1f}",
        f"{len(reached)} of {len(runs)}" + (f", {np.median(reached):.0f}" if reached else ""),
        f"{np.median([metrics[-1]['seconds'] for metrics in runs]) / 60:.1f}",
        str(len(scores)),
    )


def _reached(metrics: list[dict]) -> int | None:
    """The first evaluated batch at `GOAL`."""
    return next((row["iteration"] for row in metrics if row.get("score", 0) >= GOAL), None)


if __name__ == "__main__":
    cli.run_main(main, "python -m experiments.sums")
