"""Compares methods on HalfCheetah over several seeds: `python -m experiments.compare --help`.

Each (method, seed) is one run of `pairgrpo cheetah`, and leaves one small file in `results`, from which the table is
made. Finished runs are not made again and interrupted ones go on, so a long comparison can be made in pieces; all of
one commit. `tune` makes an equal sweep for each method, on seeds that no comparison counts.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import numpy as np

from experiments import sweeps
from experiments.benchmarks import random_policy
from experiments.grid import Cell, Grid, carry_out, runs_of
from experiments.plots import comparison
from pairgrpo_jax.commands import cheetah, cli
from pairgrpo_jax.commands.comparison import compared, interval, markdown
from pairgrpo_jax.control import ControlConfig, tuned
from pairgrpo_jax.control.config import Advantage
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.statistics import (
    interquartile_interval,
    interquartile_mean,
    noise_variance,
    relative_noise_variance,
)

_RADIUS: float = tuned("hard", "value").method.beta  # type: ignore[attr-defined]  # of Hard's trust region, in nats; shown for all methods alike


@dataclass(frozen=True)
class Comparison(Grid):
    """What to compare."""

    methods: tuple[str, ...] = ("ppo:value", "grpo:value", "rank:value", "soft:value", "hard:value")
    """Methods as algorithm:advantage, each with its tuned settings; or algorithm:advantage:scheme, with another pair
    scheme and no margin. The first is the baseline."""
    env: str = "mujoco"
    """Simulator, as in pairgrpo cheetah."""
    steps: Annotated[float, AtLeast(1)] = 3e6
    """Budget of each run, environment steps."""
    at: Annotated[float | None, AtLeast(1)] = None
    """The table of what the same runs had at their first evaluation after so many steps; their learning rates fall over
    the whole budget."""
    results: Path = Path("docs/results/halfcheetah")
    """Folder of the results, one file a run."""

    program: ClassVar[Any] = cheetah
    budget: ClassVar[str] = "steps"
    kept: ClassVar[tuple[str, ...]] = (
        *("iteration", "steps", "seconds", "score", "stochastic_score", "failed"),
        *("realised_kl", "grad_norm", "updates_used"),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.at is not None and not self.at <= self.steps:
            raise ValueError(f"at={self.at:.0f} must be at most steps={self.steps:.0f}")

    def config(self, method: str) -> ControlConfig:
        """See `parse`."""
        return parse(method)

    def trials(self, method: str) -> list[dict[str, Any]]:
        """See `sweeps`."""
        return sweeps.trials(parse(method).method.name)

    @property
    def folders(self) -> tuple[str, ...]:
        """`("mujoco", "3000000")`."""
        return self.env.replace(":", "-"), f"{self.steps:.0f}"

    @property
    def table(self) -> str:
        """`compare`, or `compare-at-1000000`."""
        return self.step if self.at is None else f"{self.step}-at-{self.at:.0f}"

    def run(self, cell: Cell, config: ControlConfig, output: Path) -> cheetah.Run:
        """The run of a cell in a folder."""
        again = {"output": output, "resume": output.exists()}
        return cheetah.Run(env=self.env, steps=self.steps, seed=cell.seed, video_steps=0, config=config, **again)


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one of them could not be finished."""
    args = cli.parse(Comparison(), sys.argv[1:], "python -m experiments.compare", __doc__)
    untrained = random_policy.stored(args.env)
    draw = functools.partial(comparison, learned_nothing=None if untrained is None else float(untrained.mean()))
    title = f"HalfCheetah, {args.env}, {args.steps:,.0f} steps"
    return carry_out(args, draw, title, lambda rows: table_of(until(runs_of(rows), args.at), untrained))


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


def until(rows: dict[str, list[list[dict]]], steps: float | None) -> dict[str, list[list[dict]]]:
    """The metrics of each run up to its first evaluation after `steps`; all of them for None."""
    if steps is None:
        return rows
    return {name: [run[: _evaluated(run, steps)] for run in runs] for name, runs in rows.items()}


def _evaluated(run: list[dict], steps: float) -> int:
    """How many rows there are up to it."""
    return next(i for i, row in enumerate(run, 1) if row["steps"] >= steps and "score" in row)


def table_of(rows: dict[str, list[list[dict]]], untrained: np.ndarray | None = None) -> str:
    """A Markdown table of methods, each with its runs' metrics; the first is the baseline, a random policy last."""
    columns = ("return, IQM [95% interval]", "stochastic policy", "P(beats {first}) [95% interval]")
    columns += ("KL noise std", f"KL ≤ {2 * _RADIUS} nats", "grad-norm noise variance / mean²", "seeds")
    made = markdown(compared(rows, columns, _figures))
    if untrained is None:
        return made
    cells = ("random policy", random_policy.told(untrained), *5 * "–", str(len(untrained)))
    return f"{made}\n| {' | '.join(cells)} |"


def _figures(scores: np.ndarray, runs: list[list[dict]], beats: str) -> tuple[str, ...]:
    kls, norms = ([np.array([row[name] for row in of]) for of in runs] for name in ("realised_kl", "grad_norm"))
    return (
        f"**{interquartile_mean(scores):.0f}**" + interval(*interquartile_interval(scores), ".0f"),
        f"{interquartile_mean(np.array([of[-1]['stochastic_score'] for of in runs])):.0f}",
        beats,
        f"{np.mean([np.sqrt(noise_variance(kl)) for kl in kls]):.4f}",
        f"{np.mean(np.concatenate(kls) <= 2 * _RADIUS):.0%}",
        f"{np.mean([relative_noise_variance(norm) for norm in norms]):.3f}",
        str(len(scores)),
    )


if __name__ == "__main__":
    cli.run_main(main, "python -m experiments.compare")
