"""The paper's tables beside ours, on one budget: `python -m experiments.paper_tables --help`.

Each (domain, method, seed) is one run of `pairgrpo align` in a folder of its own; finished ones are not made again
and interrupted ones resumed, so a long table can be made in pieces. Prints Markdown and draws a picture.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from pairgrpo_jax.commands import align, align_settings
from pairgrpo_jax.commands.cli import parse, run_main
from pairgrpo_jax.commands.runs import complete, finished_metrics, make_console
from pairgrpo_jax.core.statistics import mean_interval, noise_variance, relative_noise_variance
from pairgrpo_jax.lm.alignment import AlignConfig, tuned
from pairgrpo_jax.lm.data import ranked_right
from pairgrpo_jax.training import NonFiniteError

METHODS = ("grpo", "rank", "ppo", "soft", "hard", "dpo", "ipo", "orpo", "soft-offline", "hard-offline")
DOMAINS = ("helpful", "harmless", "ultrafeedback")
CAVEAT = (
    "The paper's percentages come from LLaMA-2-7B, 100K to 200K pairs and an evaluator it does not specify; ours are "
    "the held-out proxy reward model's win rate over the model that training started from. Only orderings compare."
)


class Paper(NamedTuple):
    """A row of the paper: win % per domain, gradient-norm variance and KL std."""

    helpful: float
    harmless: float
    ultrafeedback: float
    variance: float
    kl_std: float


PAPER = {
    "grpo": Paper(78.2, 81.5, 76.3, 0.087, 0.023),
    "soft": Paper(79.5, 82.1, 77.8, 0.059, 0.017),
    "dpo": Paper(80.1, 82.8, 78.5, 0.052, 0.015),
    "orpo": Paper(80.5, 83.2, 79.1, 0.048, 0.013),
    "hard": Paper(82.3, 85.7, 81.9, 0.031, 0.008),
}
# Label -> what differs from Hard's tuned settings, and the paper's UltraFeedback win %.
ABLATIONS = {
    "hard": ({}, 81.9),
    "fixed delta": ({"delta_gamma": 1.0}, 80.1),
    "no trust region": ({"alpha": 0.0}, 77.7),
    "delta_0 0.01, gamma 0.99": ({"delta_0": 0.01, "delta_gamma": 0.99}, 81.2),
    "delta_0 0.02, gamma 0.98": ({"delta_0": 0.02, "delta_gamma": 0.98}, 81.9),
    "delta_0 0.05, gamma 0.95": ({"delta_0": 0.05, "delta_gamma": 0.95}, 80.3),
}


@dataclass(frozen=True)
class Tables:
    """What to run, and on which budget."""

    methods: tuple[str, ...] = METHODS
    """Methods of the main table, each with its tuned settings; "-offline" learns from dataset pairs, and "@3e-4" after
    a method takes that learning rate."""
    domains: tuple[str, ...] = DOMAINS
    """helpful, harmless, ultrafeedback: each has two reward heads, one to train on and one to judge."""
    data: tuple[str, ...] = ("tiny-helpful", "tiny-harmless", "tiny")
    """Data of each domain, as in pairgrpo align."""
    ablations: bool = True
    """Make the ablation table, on the last of `domains`."""
    model: str = "smollm2"
    """As in experiments.align."""
    heads: Path | None = None
    """Folder of DOMAIN-a.safetensors and DOMAIN-b.safetensors for another model; the shipped heads fit smollm2."""
    iterations: int = 24
    """Batches of each run."""
    evaluation_prompts: int = 32
    """Held-out prompts of each run."""
    evaluation_pairs: int = 64
    """Held-out preference pairs of each offline run."""
    seeds: int = 1
    """Runs per cell."""
    window: int = 16
    """Last updates of each run that the stability table looks at."""
    output: Path = Path("runs/tables")
    """Folder of all runs."""
    report_only: bool = False
    """Make no runs; report on those that are finished."""


class Cell(NamedTuple):
    """One run of one method in one domain."""

    domain: str
    label: str
    seed: int


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one has diverged."""
    args = parse(Tables(), sys.argv[1:], "python -m experiments.paper_tables", __doc__)
    check(args)
    console, diverged = make_console(), 0
    for cell in [] if args.report_only else cells(args):
        title = f"{cell.domain}, {cell.label}, seed {cell.seed}"
        try:
            code = complete(align, run_of(args, cell), title, console)
        except NonFiniteError as error:  # a result too: the other cells go on
            console.print(f"{title} has diverged: {error}")
            code, diverged = 0, 1
        if code:
            return code
    report(args, console)
    return diverged


def check(args: Tables) -> None:
    """Raises ValueError that names the first bad field."""
    if len(args.data) != len(args.domains) or not set(args.domains) <= set(DOMAINS) or not args.domains:
        raise ValueError(f"domains={args.domains} must be out of {DOMAINS}, with one entry of data for each")
    for method in args.methods:
        config_of(method)


def config_of(label: str) -> AlignConfig:
    """The settings of a method or an ablation."""
    if label in ABLATIONS:
        return tuned("hard").replace(**ABLATIONS[label][0])
    parts = re.fullmatch(r"(?P<algo>[a-z]+)(?P<offline>-offline)?(@(?P<rate>[\d.e-]+))?", label)
    if parts is None:
        raise ValueError(f'methods: {label!r} is unknown; write an algorithm, then "-offline", "@3e-4" or neither')
    config = tuned(parts["algo"], offline=bool(parts["offline"]))
    return config.replace(learning_rate=float(parts["rate"])) if parts["rate"] else config


def paper_of(label: str) -> Paper | None:
    """The paper's row of a method, if it has one."""
    return PAPER.get(label.partition("@")[0])


def cells(args: Tables) -> list[Cell]:
    """Every run, seed by seed so that a table is whole early."""
    found = []
    for seed in range(args.seeds):
        found += [Cell(domain, label, seed) for domain in args.domains for label in args.methods]
        if args.ablations:
            found += [Cell(args.domains[-1], label, seed) for label in ABLATIONS if label not in args.methods]
    return found


def run_of(args: Tables, cell: Cell) -> align_settings.Run:
    """The run of a cell."""
    folder = args.output / cell.domain / cell.label.replace(",", "").replace(" ", "_") / f"seed{cell.seed}"
    heads = [f"{cell.domain}-{half}" for half in "ab"]
    if args.heads is not None:
        heads = [str(args.heads / f"{head}.safetensors") for head in heads]
    config = config_of(cell.label)
    config = config if config.scores_reference else config.replace(watch_kl=True)  # kl_ref is in the tables
    return align_settings.Run(
        model=args.model,
        data=args.data[args.domains.index(cell.domain)],
        judging=align_settings.Judging(heads[0]) if config.online else None,
        judge=heads[1],
        iterations=args.iterations,
        evaluation_prompts=args.evaluation_prompts,
        evaluation_pairs=args.evaluation_pairs,
        seed=cell.seed,
        output=folder,
        resume=folder.exists(),
        export=False,
        config=config,
    )


def report(args: Tables, console: Console) -> None:
    """Prints the tables, writes them, and draws the picture."""
    asked = dict.fromkeys((cell.domain, cell.label) for cell in cells(args))
    runs = {of: [run_of(args, Cell(*of, seed)) for seed in range(args.seeds)] for of in asked}
    runs = {of: finished_metrics(made) for of, made in runs.items()}
    runs = {cell: rows for cell, rows in runs.items() if rows}
    if not runs:
        raise ValueError(f"output: no finished run in {args.output}; leave out --report-only")
    parts = [budget(args, runs), CAVEAT, judges(args, runs), main_table(args, runs), stability_table(args, runs)]
    parts += [accuracy_table(args, runs)] + ([ablation_table(args, runs)] if args.ablations else [])
    text = "\n\n".join(part for part in parts if part)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "tables.md").write_text(text + "\n")
    draw(args, runs, args.output / "tables.png")
    console.print(text, markup=False)
    console.print(f"\nin {args.output / 'tables.md'} and {args.output / 'tables.png'}")


def budget(args: Tables, runs: dict) -> str:
    """What everything cost."""
    rows = [row for seeds in runs.values() for row in seeds]
    seconds = np.mean([row[-1]["seconds"] for row in rows])
    return (
        f"{args.model}, {args.iterations} batches a run, {args.evaluation_prompts} held-out prompts, "
        f"{args.seeds} seed(s) at most, {len(rows)} runs of {seconds / 60:.1f} minutes on average."
    )


def judges(args: Tables, runs: dict) -> str:
    """How well each domain's judge does at these runs' token limits."""
    parts = []
    for domain in args.domains:
        last = [seed[-1] for (of, _), seeds in runs.items() if of == domain for seed in seeds]
        if row := next((row for row in last if "head_accuracy" in row), None):
            low, high = 100 * row["head_accuracy_low"], 100 * row["head_accuracy_high"]
            parts.append(f"{domain} {100 * row['head_accuracy']:.1f}% [{low:.1f}, {high:.1f}]")
    what = (
        "Labelled pairs that the judges order rightly, cut to these runs' token limits, of rows they were not fitted on"
    )
    return f"{what}: {', '.join(parts)}." if parts else ""


def pooled(runs: list[list[dict]], name: str) -> np.ndarray | None:
    """A figure of the last evaluations, `[seeds]` or `[seeds, prompts]`; None if a run lacks it."""
    rows = [[row for row in of if name in row] for of in runs]
    return np.array([row[-1][name] for row in rows]) if rows and all(rows) else None


def rate(values: np.ndarray | None) -> str:
    """A share `[seeds, prompts]` with its interval over prompts, each averaged over seeds, in percent."""
    if values is None:
        return "-"
    low, high = mean_interval(values.mean(axis=0))
    return f"**{100 * values.mean():.1f}** [{100 * low:.1f}, {100 * high:.1f}]"


def rate_at_equal_length(runs: list[list[dict]]) -> str:
    """The mean over seeds, in percent, and its interval where there is one seed, which pools nothing."""
    name = "win_rate_length_controlled"
    means, low, high = (pooled(runs, f"{name}{end}") for end in ("", "_low", "_high"))
    if means is None:
        return "-"
    mean = f"{100 * means.mean():.1f}"
    if low is None or high is None or len(means) > 1:
        return mean
    return f"{mean} [{100 * low[0]:.1f}, {100 * high[0]:.1f}]"


def table(columns: list[str], rows: list[list[str]], heading: str) -> str:
    """A Markdown table under a heading; nothing for no rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *[f"| {' | '.join(row)} |" for row in rows]]
    return f"### {heading}\n\n" + "\n".join(lines)


def main_table(args: Tables, runs: dict) -> str:
    """Win rates over the start, per domain, the paper's beside them."""
    columns, rows = ["method", "seeds"], []
    for domain in args.domains:
        columns += [
            f"{domain}: held-out RM win % over the start",
            "at equal length",
            "KL to the start, nats a reply",
            f"paper's {domain} % (caveat above)",
        ]
    for method in args.methods:
        cells = [method, " / ".join(str(len(runs.get((domain, method), []))) for domain in args.domains)]
        for domain in args.domains:
            of = runs.get((domain, method), [])
            kl = pooled(of, "kl_reference")
            cells += [rate(pooled(of, "wins")), rate_at_equal_length(of)]
            cells += ["-" if kl is None else f"{kl.mean():.1f}"]
            cells += [f"{getattr(paper, domain)}" if (paper := paper_of(method)) else "-"]
        rows.append(cells)
    return table(columns, rows, "Main")


def updates(seed: list[dict], name: str, window: int) -> np.ndarray:
    """A metric of the updates of a run's last batches, `[U,T]`: of the first of each batch, of the second, and so on.

    They are kept apart because what differs between them, such as a gradient's norm at the policy that sampled and
    beyond it, is no noise. About `window` updates in all; batches with one that is not finite are left out.
    """
    rows = [np.atleast_1d(row[name]) for row in seed if name in row] or [np.zeros(0)]
    values = np.array([row[: min(map(len, rows))] for row in rows], float)
    values = values[np.isfinite(values).all(-1)]
    return values[-max(window // max(values.shape[1], 1), 1) :].T


def stability_table(args: Tables, runs: dict) -> str:
    """Gradient-norm variance and KL std over the last updates, means over domains and seeds."""
    rows = []
    for method in args.methods:
        of = [seed for (_, label), seeds in runs.items() if label == method for seed in seeds]
        if not of:
            continue
        norms = [updates(seed, "grad_norm", args.window) for seed in of]
        kls = [updates(seed, "kl_ref", args.window) for seed in of]
        changes = [np.sqrt(noise_variance(kl)).mean() for kl in kls if kl.shape[-1] > 2]
        paper = paper_of(method)
        rows.append(
            [
                method,
                f"{kls[0].size} of {updates(of[0], 'kl_ref', 10**9).size}",
                f"{np.mean([noise_variance(x) for x in norms]):.4g}",
                f"{np.mean([relative_noise_variance(x) for x in norms]):.3f}",
                f"{np.mean([x.std(-1) for x in kls]):.3f}",
                f"{np.mean(changes):.3f}" if changes else "-",
                f"{paper.variance}, {paper.kl_std}" if paper else "-",
            ]
        )
    columns = ["method", "last updates", "grad-norm noise variance", "variance / mean²", "std of kl_ref, nats a reply"]
    columns += ["std of its noise", "paper's variance, KL std (caveat above)"]
    return table(columns, rows, "Stability; kl_ref is estimated on the batch that is trained on")


def accuracy_table(args: Tables, runs: dict) -> str:
    """Implicit-reward accuracy on held-out pairs of the offline methods."""
    rows = []
    for method in args.methods:
        cells = []
        for domain in args.domains:
            margins = pooled(runs.get((domain, method), []), "implicit_margins")
            cells.append(rate(None if margins is None else ranked_right(margins)))
        if any(cell != "-" for cell in cells):
            rows.append([method, *cells])
    return table(["method", *args.domains], rows, "Implicit-reward accuracy on held-out pairs, %")


def ablation_table(args: Tables, runs: dict) -> str:
    """Hard-Pair-GRPO without its parts."""
    domain, rows = args.domains[-1], []
    for label, (_, paper) in ABLATIONS.items():
        of = runs.get((domain, label), [])
        if of:
            kl = pooled(of, "kl_reference")
            rows.append([label, rate(pooled(of, "wins")), "-" if kl is None else f"{kl.mean():.1f}", str(paper)])
    columns = ["setting", f"{domain}: held-out RM win %", "KL to the start, nats a reply"]
    return table([*columns, "paper's UltraFeedback % (caveat above)"], rows, "Ablations of Hard-Pair-GRPO")


def draw(args: Tables, runs: dict, path: Path) -> None:
    """Win rates with intervals per method and domain, the same against KL, and KL to the start along training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (rates, frontier, along) = plt.subplots(1, 3, figsize=(20, 4.8), constrained_layout=True)
    labels = [m for m in dict.fromkeys((*args.methods, *ABLATIONS)) if any((d, m) in runs for d in args.domains)]
    for i, domain in enumerate(args.domains):
        for x, label in enumerate(labels):
            of = runs.get((domain, label), [])
            wins, kl = pooled(of, "wins"), pooled(of, "kl_reference")
            if wins is None or kl is None:
                continue
            mean, (low, high) = wins.mean(), mean_interval(wins.mean(axis=0))
            style = dict(yerr=[[mean - low], [high - mean]], fmt="os^"[i], capsize=2)
            rates.errorbar(x + 0.15 * (i - 1), mean, color=f"C{i}", label=domain if x == 0 else None, **style)
            frontier.errorbar(kl.mean(), mean, color=f"C{x % 10}", **style)
            frontier.annotate(label, (kl.mean(), mean), (3, 3), textcoords="offset points", fontsize=7)
    rates.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
    rates.legend(fontsize=8)
    for axes in (rates, frontier):
        axes.axhline(0.5, color="grey", linewidth=1)
        axes.set(ylabel="held-out RM win rate over the start")
    frontier.set(xlabel="KL to the start, nats a reply", xscale="log")
    for label in labels:
        of = [seed for (_, m), seeds in runs.items() if m == label for seed in seeds]
        kl = [updates(seed, "kl_ref", 10**9).T.ravel() for seed in of]
        shortest = min(map(len, kl))
        if shortest:
            along.plot(np.mean([x[:shortest] for x in kl], axis=0), label=label, linewidth=1)
    along.set(xlabel="update", ylabel="kl_ref on the training batch, nats a reply")
    along.set_yscale("symlog", linthresh=1)
    along.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{args.model}, {args.iterations} batches, {args.seeds} seed(s), 95% intervals over prompts")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    run_main(main)
