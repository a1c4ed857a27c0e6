"""Prints what is true of the Pair-GRPO family: each claim with its verdict, number, bound and time.

    pairgrpo theory --output runs

Writes `theory.md` and, in a folder `theory` beside it, `statements.json` and the plots; with `--only` both are named
after the items. Exits with status 1 if a number contradicts a verdict. Seconds are those of the processor, which other
programs on the machine do not change.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from pairgrpo_jax import theory
from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.core.bounds import Seed, Settings
from pairgrpo_jax.theory.comparisons import Lost
from pairgrpo_jax.theory.equivalence import Cosines
from pairgrpo_jax.theory.statement import Statement
from pairgrpo_jax.training.console import LineConsole

HEADER = (
    "item",
    "claim",
    "verdict",
    "condition or counterexample",
    "measured",
    "predicted",
    "bound",
    "confirmed",
    "CPU s",
)


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """What to check and where to write it."""

    output: Path = Path("runs")
    """Folder for the report, the numbers and the plots."""
    seed: Seed = 0
    """Of the random problems."""
    only: tuple[str, ...] = ()
    """Items to check (1, 3b, C1, I2); all by default. The report and its folder are then named after them, as
    theory-3b-C1.md, and leave those of a whole table alone."""

    def __post_init__(self):
        super().__post_init__()
        items = _items()
        if unknown := sorted(set(self.only) - set(items)):
            raise ValueError(f"only: no statement is called {', '.join(unknown)}; choose from {', '.join(items)}")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output: {self.output} is a file; choose another --output")

    @property
    def name(self) -> str:
        """Of the report and of the folder beside it."""
        return "-".join(("theory", *(item for item in _items() if item in self.only)))


def _items() -> dict[str, Callable[[jax.Array], Statement]]:
    """The statements by item, in the order of the report."""
    return {(function.__doc__ or "").split(".")[0]: function for function in theory.STATEMENTS}


def make_folder(config: Config) -> Path:
    """Makes the folder beside the report, and what lies above it; ValueError if nothing can be written there."""
    folder = config.output / config.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: cannot make {folder} ({error.strerror}); choose another --output") from error
    return folder


def check(config: Config) -> list[tuple[Statement, float]]:
    """Runs the statements; returns each with its seconds."""
    key, results = jax.random.key(config.seed), []
    for item, function in _items().items():
        if config.only and item not in config.only:
            continue
        start = time.process_time()
        statement = function(key)
        results.append((statement, time.process_time() - start))
        print(f"{statement.item}: {'ok' if statement.confirmed else 'NOT CONFIRMED'}", file=sys.stderr, flush=True)
    return results


def row(statement: Statement, seconds: float) -> tuple[str, ...]:
    """One row of the table."""
    numbers = (f"{x:.4g}" for x in (statement.measured, statement.predicted, statement.bound))
    done = "yes" if statement.confirmed else "NO: " + "; ".join(statement.failures)
    return (statement.item, statement.claim, statement.verdict, statement.condition, *numbers, done, f"{seconds:.1f}")


def print_table(results: list[tuple[Statement, float]]) -> None:
    """The table, on the terminal: claim, verdict, number, bound, seconds."""
    table = Table("item", "claim", "verdict", "number", "bound", "ok", "CPU s", show_lines=True)
    for statement, seconds in results:
        item, claim, verdict, _, measured, predicted, bound, done, spent = row(statement, seconds)
        table.add_row(item, claim, verdict, f"{measured} (of {predicted})", bound, done, spent)
    LineConsole(width=140).print(table)


def report(results: list[tuple[Statement, float]], cosines: list[Cosines], lost: list[Lost], plots: list[Path]) -> str:
    """The Markdown report; `plots` are relative to it."""
    lines = ["# What is true of the Pair-GRPO family", ""]
    confirmed, seconds = sum(s.confirmed for s, _ in results), sum(t for _, t in results)
    lines += [
        f"{confirmed} of {len(results)} statements confirmed in {seconds:.0f} s of processor time by",
        "`pairgrpo theory`. Problems are exact: expectations are sums over all groups, in float64.",
        "*Confirmed* says that measured and predicted lie within the bound and that every further check passed.",
        "Items 1 to 11 follow the paper's claims; G is a guarantee; I is an improvement; C is of comparisons.",
        "",
    ]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row(s, t)) + " |" for s, t in results]
    lines += ["", "## Pictures", ""] + [f"![{path.name}]({path})\n" for path in plots]
    lines += ["## Numbers behind each statement", ""]
    for statement, _ in results:
        lines += [f"### {statement.item}. {statement.claim}", ""]
        lines += [f"- {'yes' if passed else '**NO**'}: {name}" for name, passed in statement.checks.items()]
        lines += [f"- {name}: {value:.6g}" for name, value in statement.numbers.items()] + [""]
    if cosines:
        lines += ["## Cosine of Soft's gradient with noiseless GRPO's, one group, tabular softmax policies", ""]
        lines += [
            "Noise is added to the rewards that make the pairs; the last column is GRPO's own cosine under it.",
            "",
        ]
        lines += [
            "| rewards | K | pairs | noise | median | smallest | GRPO, same noise |",
            "|---|---|---|---|---|---|---|",
        ]
        for c in cosines:
            numbers = f"{c.median:.3f} | {c.smallest:.3f} | {c.grpo_median:.3f}"
            lines += [f"| {c.law} | {c.size} | {c.scheme} | {c.noise} | {numbers} |"]
    return "\n".join(lines + comparisons(lost)) + "\n"


def comparisons(lost: list[Lost]) -> list[str]:
    """The lines of the table of what fewer comparisons lose."""
    if not lost:
        return []
    lines = ["", "## What fewer comparisons lose under a judge that errs", ""]
    lines += [
        "*Expected*: cosine of the expected gradient to that of all pairs; the sampling of groups alone would put it",
        "below 1 by what follows. *One group*: mean cosine of its pair rewards with those of a judge that never errs.",
        "*Signal*: what a question adds to the squared signal-to-noise ratio over many groups. Rounds are in a row.",
        "",
        "| K | plan | orders | errors | questions | % of all | rounds | expected | one group | signal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for x in lost:
        about = (
            f"{x.size} | {x.plan} | {1 + x.twice} | {x.error:.0%} | {x.questions:.1f} | {x.share:.0%} | {x.rounds:.1f}"
        )
        signal = "-" if x.group > 1 - 1e-9 else f"{x.signal:.3f}"
        lines += [f"| {about} | {x.expected:.4f} (-{x.sampling:.4f}) | {x.group:.3f} | {signal} |"]
    return lines


def plot(results: list[tuple[Statement, float]], folder: Path) -> list[str]:
    """Draws what the statements measured; returns the file names."""
    found = {statement.item: statement.curves for statement, _ in results}
    drawn = {name: (need, draw) for name, (need, draw) in PLOTS.items() if need in found}
    for name, (need, draw) in drawn.items():
        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        draw(axes, found[need])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
    return [f"{name}.png" for name in drawn]


def _lines(x: str, title: str, xlabel: str, ylabel: str, scale: str = "log"):
    """A plot of all of a statement's curves against the one named x."""

    def draw(axes, curves):
        for name, values in curves.items():
            if name != x:
                axes.plot(curves[x], values, marker=".", label=name)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        if scale != "linear":
            axes.set_xscale("log")
            axes.set_yscale("log" if scale == "log" else "linear")

    return draw


def _histogram(axes, curves):
    for name, values in curves.items():
        axes.hist(values, bins=np.linspace(0, 1, 60), histtype="step", label=name)
    axes.set(title="One group, K = 8: Soft against GRPO", xlabel="cosine of gradients", ylabel="groups of 4000")


def _scatter(x: str, y: str, title: str, log: bool = False):
    def draw(axes, curves):
        axes.scatter(curves[x].ravel(), curves[y].ravel(), s=2, alpha=0.3)
        low, high = min(curves[x].min(), curves[y].min()), curves[y].max()
        axes.plot([low, high], [low, high], "k--", lw=1, label=f"{y} = {x}")
        axes.set(title=title, xlabel=x, ylabel=y)
        if log:
            axes.set_xscale("symlog", linthresh=1e-4)
            axes.set_yscale("symlog", linthresh=1e-4)

    return draw


def _updates(title: str, ylabel: str):
    def draw(axes, curves):
        for name, values in curves.items():
            if name == "radius":
                axes.axhline(values[0], color="k", ls="--", lw=1, label="beta")
            else:
                axes.plot(np.linspace(0, 1, len(values)), values, label=name)
        axes.set(title=title, xlabel="share of the run", ylabel=ylabel)

    return draw


def _noise(title: str, ylabel: str, keep: tuple[str, ...]):
    draw = _lines("noise", title, "noise, in units of the reward gap", ylabel, "linear")
    return lambda axes, curves: draw(axes, {k: v for k, v in curves.items() if k == "noise" or k.endswith(keep)})


PLOTS = {
    "cosines": ("2", _histogram),
    "gradient_bound": ("3b", _scatter("bound", "cosine", "Gradient cosine and its lower bound")),
    "bradley_terry": ("4", _lines("scale", "Bradley-Terry remainder", "scale of rewards", "relative to first order")),
    "hard_direction": ("5", _lines("delta", "Reverse fit minus -delta (g_p - g_r)", "delta", "norm")),
    "off_policy": ("6", _lines("step", "Soft and Hard off the old policy", "parameter step", "angle (radians)")),
    "preferred_can_fall": (
        "7",
        _lines("features", "Pairs that do not move as asked", "parameters D", "share of pairs", "semilogx"),
    ),
    "variance": (
        "8b",
        _noise("Variance / squared mean", "relative variance", ("4, grpo", "4, dr_grpo", "4, soft all")),
    ),
    "determinism": ("G1", _noise("Direction under noise, K = 4", "mean cosine", ("grpo", "soft all", "best_worst"))),
    "realised_kl": ("10b", _lines("delta", "Realised KL of one update", "delta", "KL (nats)")),
    "improvement": (
        "11",
        _lines("step size", "Updates that do not lower J", "step size of Adam", "share", "semilogx"),
    ),
    "policy_bound": ("11b", _scatter("bound", "gain", "True gain in J and TRPO's bound", log=True)),
    "comparisons": (
        "C1",
        _lines("errors", "One group, K = 8", "share of wrong answers", "cosine to no errors", "linear"),
    ),
    "chosen_budget": ("I1", _updates("travel_schedule, budget 0.35", "probability of the best arm")),
    "limited_step": ("I2", _updates("Realised KL of each update", "KL (nats)")),
}


def main(words: Sequence[str]) -> int:
    """Runs everything in float64; returns the exit status."""
    config = parse(Config(), words, "pairgrpo theory", __doc__)
    with jax.enable_x64(True):
        return execute(config)


def execute(config: Config) -> int:
    """Runs the statements in float64, which must be on, and reports; 1 if one is not confirmed."""
    matplotlib.use("Agg")
    start, folder, key = time.perf_counter(), make_folder(config), jax.random.key(config.seed)
    results = check(config)
    cosines = [] if config.only else theory.cosine_table(key)
    asked = not config.only or "C1" in config.only
    lost = theory.comparison_table(key) if asked else []
    print_table(results)
    plots = [Path(config.name, name) for name in plot(results, folder)]
    written = folder.with_suffix(".md")
    written.write_text(report(results, cosines, lost, plots))
    keep = ("item", "claim", "verdict", "condition", "measured", "predicted", "bound", "checks", "numbers")
    rows = [{k: getattr(s, k) for k in keep} | {"confirmed": s.confirmed, "seconds": t} for s, t in results]
    (folder / "statements.json").write_text(json.dumps(rows, indent=1, default=float) + "\n")
    failed = [statement.item for statement, _ in results if not statement.confirmed]
    print(
        f"{len(results) - len(failed)} of {len(results)} statements confirmed in "
        f"{time.perf_counter() - start:.0f} s ({time.process_time():.0f} s of processor time)"
    )
    print(f"report: {written}" + (f"; NOT confirmed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0
