"""Measures a judge on labelled pairs before it is trusted: `pairgrpo judge --judge judge:openai:MODEL --data PAIRS`.

Each pair is asked about in both orders. Writes the figures, with 95% bootstrap intervals over pairs, and a table; keeps
the verdicts beside them, so that the same command again asks only what is new.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.commands.judging import OPENAI, Asking, Comparing, make_judge, verdicts_in
from pairgrpo_jax.commands.runs import make_console, reading
from pairgrpo_jax.commands.words import peek
from pairgrpo_jax.core.bounds import Above, AtLeast, Settings
from pairgrpo_jax.core.statistics import mean_interval
from pairgrpo_jax.lm.data import Preference, describe, load_preferences, spread
from pairgrpo_jax.lm.rewards.sources import Source, columns_of
from pairgrpo_jax.training import settings
from pairgrpo_jax.training.run import without_nan

CLAIMS = {
    "agreement": "agrees with the label, both orders asked (ties half)",
    "agreement_one_order": "agrees with the label, one order asked (ties half)",
    "agreement_decided": "agrees with the label, of pairs with a verdict",
    "ties": "no verdict: a tie, or the orders disagree",
    "flips": "prefers the other reply when the order changes",
    "first": "prefers the reply that is shown first, of pairs with a verdict in some order",
    "longer": "prefers the longer reply, of pairs with a verdict",
    "longer_labels": "the label prefers the longer reply",
}


@dataclass(frozen=True)
class Measuring(Settings):
    """Which judge, and on what."""

    judge: str = ""
    """judge:openai:MODEL, behind OPENAI_BASE_URL with OPENAI_API_KEY, or judge:module:function."""
    data: str = "tiny"
    """Preferences; see pairgrpo align."""
    split: str = "train"
    """Split of the data."""
    prompt_column: str | None = None
    """Column that holds the prompt, where it is not called prompt."""
    system: str | None = None
    """A system message, put before prompts that have none."""
    pairs: Annotated[int, AtLeast(2)] = 100
    """How many pairs, spread over the data."""
    timeout: Annotated[float | None, Above(0)] = 60.0
    """Seconds for one question."""
    retries: Annotated[int, AtLeast(0)] = 5
    """More tries after a failure; a pair without a verdict is left out and counted."""
    judge_concurrency: Annotated[int, AtLeast(1)] = 8
    """Questions under way at once."""
    judge_backoff: Annotated[float, AtLeast(0)] = 0.5
    """Seconds before the first of the retries, doubled with each."""
    output: Path = Path("runs/judge")
    """Folder for figures.json, table.md and the verdicts."""
    asking: Asking | None = None


def main(words: Sequence[str]) -> int:
    """Parses the command line, asks, and reports."""
    asking = Asking() if peek(words, "judge", "").startswith(OPENAI) else None
    return execute(parse(Measuring(asking=asking), words, "pairgrpo judge", __doc__), make_console())


def execute(run: Measuring, console: Console) -> int:
    """Measures and reports; the exit code, 1 if the judge gave no verdict on any pair."""
    if not run.judge.startswith("judge:"):
        raise ValueError(f"judge={run.judge!r} must be judge:openai:MODEL or judge:module:function")
    loaded = load_preferences(run.data, **reading(run))
    rows = spread(loaded.rows, run.pairs)
    memory = verdicts_in(run.output)
    known = memory.path.exists()
    how = Comparing("all", False, run.judge_concurrency, run.judge_backoff)
    policy = {"timeout": run.timeout, "retries": run.retries, "on_error": "skip"}
    source = make_judge(run.judge, how, run.asking, memory=memory, check=not known, setting="judge", **policy)
    columns_of(source).shared((row.columns for row in rows), "judge")
    memory.open()
    console.print(f"{run.data}: {describe(loaded)}; {len(rows)} pairs")
    verdicts, told = ask(source, rows)
    found = figures(rows, verdicts)
    row = {"settings": settings(run), "pairs": len(rows), "failed": int(np.isnan(verdicts).any(0).sum())}
    text = json.dumps(without_nan(row | {"figures": found} | told), indent=2, allow_nan=False)
    (run.output / "figures.json").write_text(text + "\n")
    (run.output / "table.md").write_text(markdown(found))
    if row["failed"] == len(rows):
        print(f"pairgrpo judge: error: {run.judge} gave no verdict on any of {len(rows)} pairs", file=sys.stderr)
        return 1
    report(run, row, found, told, console)
    return 0


def ask(source: Source, rows: Sequence[Preference]) -> tuple[np.ndarray, dict[str, float]]:
    """Verdicts `[2,N]` and what they took: 1 where the chosen reply is preferred, 0 the rejected one, 0.5 for a tie.

    The chosen reply is shown first in row 0, second in row 1; NaN where there is no verdict.
    """
    orders = [[row.chosen, row.rejected] for row in rows], [[row.rejected, row.chosen] for row in rows]
    names = columns_of(source).shared(row.columns for row in rows)
    columns = {name: [row.columns[name] for row in rows] * 2 for name in names}
    found = source([row.prompt for row in rows] * 2, orders[0] + orders[1], **columns)
    assert found.pairs is not None
    preferred, weight = (np.asarray(x)[:, 0] for x in (found.pairs.preferred, found.pairs.weight))
    first = np.where(weight > 0, 1.0 - preferred, 0.5)
    first = np.where(found.failed, np.nan, first).reshape(2, len(rows))
    return np.stack([first[0], 1 - first[1]]), dict(found.metrics)


def figures(rows: Sequence[Preference], verdicts: np.ndarray) -> dict[str, dict[str, Any]]:
    """Each of `CLAIMS` as a share of the pairs that it is about, their number, and the interval of the share.

    Args:
      rows: the N pairs.
      verdicts: `[2,N]`, see `ask`.
    """
    heard = ~np.isnan(verdicts).any(0)
    forth, back = verdicts[:, heard]
    both = np.where(forth == back, forth, 0.5)
    decided = both != 0.5
    gaps = np.array([len(row.chosen) - len(row.rejected) for row in rows])[heard]
    shown = np.stack([forth, 1 - back])  # 1 where the first reply is preferred
    said = (shown != 0.5).sum(0)
    uneven = decided & (gaps != 0)
    shares = {
        "agreement": both,
        "agreement_one_order": (forth + back) / 2,
        "agreement_decided": both[decided],
        "ties": ~decided,
        "flips": (forth != back) & (forth != 0.5) & (back != 0.5),
        "first": np.where(shown != 0.5, shown, 0).sum(0)[said > 0] / said[said > 0],
        "longer": (both == 1)[uneven] == (gaps > 0)[uneven],
        "longer_labels": (gaps > 0)[gaps != 0],
    }
    return {name: share(values) for name, values in shares.items()}


def share(values: np.ndarray) -> dict[str, Any]:
    """The mean of `[N]`, its interval and N; None where N = 0."""
    values = np.asarray(values, float)
    if not len(values):
        return {"share": None, "interval": None, "count": 0}
    return {"share": float(values.mean()), "interval": mean_interval(values), "count": len(values)}


def cells(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Rows of the table: claim, share with interval in percent, pairs."""
    rows = []
    for name, claim in CLAIMS.items():
        value = found[name]
        if value["share"] is None:
            rows.append((claim, "-", "0"))
            continue
        low, high = (100 * end for end in value["interval"])
        rows.append((claim, f"{100 * value['share']:.1f} [{low:.1f}, {high:.1f}]", str(value["count"])))
    return rows


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = ["| the judge ... | % [95% interval] | of |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells(found))]) + "\n"


def report(run: Measuring, row: dict, found: dict, told: dict[str, float], console: Console) -> None:
    """Prints the table, what the judge took, and where everything is."""
    table = Table("the judge ...", "% [95% interval]", "of", title=run.judge)
    for cell in cells(found):
        table.add_row(*cell)
    console.print(table, soft_wrap=False)
    cost = f", cost {told['judge_cost']:.4g}" if "judge_cost" in told else ""
    console.print(
        f"{told['judge_questions']:.0f} questions ({told['judge_cached']:.0f} more known, {told['judge_retries']:.0f} "
        f"asked again), {told['judge_latency']:.2f} s each, {told['judge_prompt_tokens']:.0f} tokens in and "
        f"{told['judge_completion_tokens']:.0f} out{cost}; {row['failed']} of {row['pairs']} pairs without a verdict"
    )
    console.print(f"figures: {run.output / 'figures.json'}, {run.output / 'table.md'}")
