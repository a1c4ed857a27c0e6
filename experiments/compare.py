"""Compares methods on HalfCheetah over several seeds: `python -m experiments.compare --help`.

Each (method, seed) is one run of `pairgrpo cheetah`, and leaves one small file in `results`, from which the table is
made. Finished runs are not made again and interrupted ones go on, so a long comparison can be made in pieces; all of
one commit. `tune` makes an equal sweep for each method, on seeds that no comparison counts.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import tyro
from rich.console import Console

from experiments import results, sweeps
from experiments.plots import comparison
from pairgrpo_jax.commands import cheetah, cli
from pairgrpo_jax.commands.runs import complete
from pairgrpo_jax.control import ControlConfig, tuned
from pairgrpo_jax.control.config import Advantage
from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.core.statistics import (
    improvement_interval,
    interquartile_interval,
    interquartile_mean,
    noise_variance,
    probability_of_improvement,
    relative_noise_variance,
)
from pairgrpo_jax.training import read_metrics, settings

TUNING_SEEDS = range(100)  # the presets, too, were chosen on seed 0
_RADIUS: float = tuned("hard", "value").method.beta  # type: ignore[attr-defined]  # of Hard's trust region, in nats; shown for all methods alike
_KEPT = ("iteration", "steps", "seconds", "score", "stochastic_score", "realised_kl", "grad_norm", "updates_used")


@dataclass(frozen=True)
class Comparison(Settings):
    """What to compare."""

    step: tyro.conf.Positional[Literal["compare", "tune"]] = "compare"
    """compare the methods, or tune them: the same number of trials for each, on seeds that are never counted."""
    methods: tuple[str, ...] = ("ppo:value", "grpo:value", "rank:value", "soft:value", "hard:value")
    """Methods as algorithm:advantage, each with its tuned settings; or algorithm:advantage:scheme, with another pair
    scheme and no margin. The first is the baseline."""
    env: str = "mujoco"
    """Simulator, as in pairgrpo cheetah."""
    steps: Annotated[float, AtLeast(1)] = 3e6
    """Budget of each run, environment steps."""
    seeds: Annotated[int, AtLeast(1)] = 10
    """Runs per method (tune: per trial)."""
    first_seed: Annotated[int | None, AtLeast(0)] = None
    """The first of them; default: 100, and 0 to tune. Seeds below 100 are for tuning alone."""
    output: Path = Path("runs/compare")
    """Folder of the runs, with their checkpoints; can be removed once all are finished."""
    results: Path = Path("docs/results/halfcheetah")
    """Folder of the results, one file a run."""
    tuned_at: Annotated[float | None, AtLeast(1)] = None
    """Take each method's best trial of the sweep of this many steps, in `results`; default: its preset."""
    report_only: bool = False
    """Make no runs; report on those that are finished."""

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.steps):
            raise ValueError(f"steps must be finite, got {self.steps}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must name each method once, got {' '.join(self.methods)}")
        for method in self.methods:
            parse(method)
        counted = self.step == "compare"
        if self.tuned_at and not counted:
            raise ValueError("tuned_at: a sweep starts from presets; leave out --tuned-at")
        if any((seed in TUNING_SEEDS) == counted for seed in self.all_seeds):
            kept = f"seeds 0 to {TUNING_SEEDS[-1]} are for tuning alone"
            raise ValueError(f"first_seed={self.all_seeds[0]}, seeds={self.seeds}: {kept}")

    @property
    def all_seeds(self) -> range:
        """Every seed, in order."""
        start = TUNING_SEEDS.stop if self.step == "compare" else 0
        start = start if self.first_seed is None else self.first_seed
        return range(start, start + self.seeds)


class Cell(NamedTuple):
    """One run: a method, what its sweep changes (`sweeps.label`; "" for none), and a seed."""

    method: str
    trial: str
    seed: int


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one of them could not be finished."""
    args = cli.parse(Comparison(), sys.argv[1:], "python -m experiments.compare", __doc__)
    console, failed = Console(), {}
    if not args.report_only:
        made_by = results.origin()
        asked = cells(args)
        found = [found for cell in asked if (found := result_of(args, cell))]
        results.require_one_origin(found, made_by)
        for cell in asked:
            code, failure = make(args, cell, made_by, console)
            if code:
                return code
            failed |= {cell: failure} if failure else {}
    report(args, console)
    for cell, failure in failed.items():
        console.print(f"not finished: {title(cell)}: {failure}", highlight=False, markup=False)
    return 1 if failed else 0


def make(args: Comparison, cell: Cell, made_by: dict[str, Any], console: Console) -> tuple[int, str]:
    """Makes a run and its result unless there is one; the exit code of a signal, and why it could not be finished."""
    if result_of(args, cell):
        return 0, ""
    run = run_of(args, cell, made_by["commit"])
    try:
        if code := complete(cheetah, run, title(cell), console):
            return code, ""
    except Exception as error:  # whatever ended this run, the others are made
        cause = error.__cause__ or error
        return 0, f"{type(cause).__name__}: {cause}"
    curve = [{name: _short(row[name]) for name in _KEPT if name in row} for row in read_metrics(run.output)]
    kept = {name: value for name, value in settings(run).items() if name not in cheetah.FREE}
    results.write(path_of(args, cell), {**cell._asdict(), **made_by, "settings": kept, "metrics": curve})
    return 0, ""


def _short(value: Any) -> Any:
    """Numbers of six digits; those of the one seed of a run without their list."""
    value = value[0] if isinstance(value, list) else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


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


def sweep(method: str) -> dict[str, dict[str, Any]]:
    """A method's trials by their labels."""
    return {sweeps.label(trial): trial for trial in sweeps.trials(parse(method).method.name)}


def cells(args: Comparison) -> list[Cell]:
    """Every run, seed by seed so that a table is whole early."""
    if args.step == "tune":
        return [Cell(m, trial, seed) for seed in args.all_seeds for m in args.methods for trial in sweep(m)]
    best = {method: best_trial(args, method) if args.tuned_at else "" for method in args.methods}
    return [Cell(method, best[method], seed) for seed in args.all_seeds for method in args.methods]


def title(cell: Cell) -> str:
    """A cell in words."""
    return ", ".join(part for part in (cell.method, cell.trial, f"seed {cell.seed}") if part)


def path_of(args: Comparison, cell: Cell) -> Path:
    """Where a result lives."""
    return args.results / _part(args, cell).with_suffix(".json")


def _part(args: Comparison, cell: Cell) -> Path:
    """`mujoco/3000000/hard-value/seed100`, or `.../hard-value/learning_rate=0.005-delta_0=0.03/seed0`."""
    names = (args.env, f"{args.steps:.0f}", cell.method, cell.trial, f"seed{cell.seed}")
    return Path(*(name.replace(":", "-").replace(",", "-") for name in names))


def run_of(args: Comparison, cell: Cell, commit: str = "") -> cheetah.Run:
    """The run of a cell; those of another commit are not gone on with."""
    output = args.output / commit[:12] / _part(args, cell)
    trial = sweep(cell.method)[cell.trial] if cell.trial else {}
    return cheetah.Run(
        env=args.env,
        steps=args.steps,
        seed=cell.seed,
        output=output,
        resume=output.exists(),
        video_steps=0,
        config=parse(cell.method).replace(**trial),
    )


def result_of(args: Comparison, cell: Cell) -> dict[str, Any] | None:
    """A cell's result, if it is finished; ValueError if it is one of other settings."""
    return results.read(path_of(args, cell), settings(run_of(args, cell)), cheetah.FREE)


def finished(args: Comparison, asked: Sequence[Cell]) -> dict[Cell, list[dict]]:
    """The metrics of the cells that are finished; ValueError unless they are of one commit."""
    found = {cell: result for cell in asked if (result := result_of(args, cell))}
    results.require_one_origin(found.values())
    return {cell: result["metrics"] for cell, result in found.items()}


def best_trial(args: Comparison, method: str) -> str:
    """The trial with the highest mean return over its tuning seeds, as many as `tune` has left; ValueError if none."""
    tune = dataclasses.replace(args, step="tune", steps=args.tuned_at, tuned_at=None, first_seed=0, seeds=1)
    folder = path_of(tune, Cell(method, next(iter(sweep(method))), 0)).parent
    seeds = [seed for seed in TUNING_SEEDS if (folder / f"seed{seed}.json").exists()]
    asked = [Cell(method, trial, seed) for trial in sweep(method) for seed in seeds]
    scores = {cell: metrics[-1]["score"] for cell, metrics in finished(tune, asked).items()}
    if not seeds or len(scores) < len(asked):
        raise ValueError(
            f"tuned_at: the sweep of {method} at {args.tuned_at:.0f} steps is not whole; make it with `tune`"
        )
    return max(sweep(method), key=lambda trial: np.mean([scores[Cell(method, trial, seed)] for seed in seeds]))


def report(args: Comparison, console: Console) -> None:
    """Prints the table, writes it beside the results, and draws the curves."""
    asked = cells(args)
    found = finished(args, asked)
    if not found:
        raise ValueError(f"results: no finished run in {args.results}; leave out --report-only")
    rows = {}
    for cell, metrics in found.items():
        rows.setdefault(f"{cell.method} {cell.trial}".strip(), []).append(metrics)
    table = table_of(rows)
    if missing := [title(cell) for cell in asked if cell not in found]:
        table += f"\n\nNot finished, and not counted: {'; '.join(missing)}."
    where = args.results / args.env.replace(":", "-") / f"{args.steps:.0f}"
    (where / f"{args.step}.md").write_text(table + "\n")
    comparison(rows, where / f"{args.step}.png", f"HalfCheetah, {args.env}, {args.steps:,.0f} steps")
    console.print(table, highlight=False, soft_wrap=True, markup=False)
    console.print(f"\nin {where}: {args.step}.md, {args.step}.png", highlight=False)


def table_of(rows: dict[str, list[list[dict]]]) -> str:
    """A Markdown table of methods, each with the metrics of its runs; the first is the baseline."""
    scores = {method: np.array([metrics[-1]["score"] for metrics in runs]) for method, runs in rows.items()}
    first = next(iter(scores))
    columns = ("method", "return, IQM [95% interval]", "stochastic policy", f"P(beats {first}) [95% interval]")
    columns += ("KL noise std", f"KL ≤ {2 * _RADIUS} nats", "grad-norm noise variance / mean²", "seeds")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method, runs in rows.items():
        rival = None if method == first else scores[first]
        lines.append(f"| {' | '.join((method, *_figures(scores[method], runs, rival)))} |")
    return "\n".join(lines)


def _figures(scores: np.ndarray, runs: list[list[dict]], rival: np.ndarray | None) -> tuple[str, ...]:
    beats = "–"
    if rival is not None:
        share, between = probability_of_improvement(scores, rival), improvement_interval(scores, rival)
        beats = f"{share:.2f}" + interval(*between, ".2f")
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


def interval(low: float, high: float, form: str) -> str:
    """` [low, high]`, or nothing where one run gives none."""
    return "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"


if __name__ == "__main__":
    cli.run_main(main, "python -m experiments.compare")
