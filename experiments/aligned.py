"""Comparisons whose runs are those of `pairgrpo align`: online methods, equally long, at the same distances."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from experiments.grid import Cell, Grid, runs_of
from experiments.matched import curve_of, matched
from pairgrpo_jax.commands import align, align_settings
from pairgrpo_jax.commands.comparison import compared, interval, markdown
from pairgrpo_jax.core.bounds import AtLeast
from pairgrpo_jax.core.checks import did_you_mean
from pairgrpo_jax.core.statistics import interquartile_interval, interquartile_mean
from pairgrpo_jax.lm.alignment import AlignConfig
from pairgrpo_jax.methods import ONLINE


@dataclass(frozen=True)
class Aligned(Grid):
    """What to compare."""

    methods: tuple[str, ...] = ("grpo", "ppo", "soft", "hard")
    """Online methods, each with its preset, or with another step size of Adam, as in hard@3e-4. The first is the
    baseline."""
    seeds: Annotated[int, AtLeast(1)] = 5
    """Runs per method (tune: per trial)."""
    iterations: Annotated[int, AtLeast(1)] = align_settings.Run.iterations
    """Batches of each run."""
    evaluations: Annotated[int, AtLeast(1)] = 6
    """Evaluations of each run; what a method scores at a KL is read off between them."""
    distances: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """KLs to the start, nats a reply, at which methods are compared."""
    operands: Literal["bfloat16"] | None = None
    """As of `pairgrpo align`, for all runs."""

    program: ClassVar[Any] = align
    budget: ClassVar[str] = "iterations"
    rates: ClassVar[tuple[float, ...]]  # Adam's step sizes that a sweep tries
    what: ClassVar[str]  # the score, in words
    each: ClassVar[str]  # metric: scores of each held-out prompt
    start: ClassVar[str | float]  # metric, or its value: mean score of the start
    more_columns: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        if not all(kl > 0 for kl in self.distances):
            raise ValueError(f"distances={self.distances} must be above 0; the start is at 0")

    @abstractmethod
    def preset(self, method: str) -> align_settings.Run:
        """Where an online method starts."""

    def config(self, method: str) -> AlignConfig:
        """A method's preset, with the rate it names; ValueError for one that does not sample."""
        name, rate = _named(method)
        if name not in ONLINE:
            hint = did_you_mean(name, ONLINE, f"choose among {', '.join(ONLINE)}")
            raise ValueError(f"methods: {name!r} samples nothing; {hint}")
        config = self.preset(name).config
        return config if rate is None else config.replace(learning_rate=rate)

    def trials(self, method: str) -> list[dict[str, Any]]:
        """The same rates for each method."""
        return [{"learning_rate": rate} for rate in self.rates]

    def run(self, cell: Cell, config: AlignConfig, output: Path) -> align_settings.Run:
        """The run of a cell in a folder."""
        changes = {"iterations": int(self.iterations), "evaluations": self.evaluations, "seed": cell.seed}
        changes |= {"output": output, "resume": output.exists(), "export": False, "config": config}
        changes |= {"operands": self.operands}
        return self.preset(_named(cell.method)[0]).replace(**changes)

    def table_of(self, rows: dict[str, dict[int, list[dict]]]) -> str:
        """Methods at the end of their runs, and where they are equally far from the start."""
        curves = {
            method: {seed: curve_of(metrics, self.each, self.start) for seed, metrics in runs.items()}
            for method, runs in rows.items()
        }
        return f"{self.ends(runs_of(rows))}\n\n{matched(curves, self.distances)}"

    def ends(self, rows: dict[str, list[list[dict]]]) -> str:
        """A Markdown table of methods, each with the metrics of its runs; the first is the baseline."""
        columns = (f"{self.what} %, IQM [95% interval]", "P(beats {first}) [95% interval]")
        columns += ("KL to the start, nats a reply", "reply tokens", *self.more_columns, "minutes", "seeds")
        return markdown(compared(rows, columns, self._figures, self.score))

    def score(self, row: dict) -> float:
        """The mean over held-out prompts; a run's own score may be another, such as its reward."""
        return float(np.mean(row[self.each]))

    def more(self, runs: list[list[dict]]) -> tuple[str, ...]:
        """Cells of `more_columns`."""
        return ()

    def _figures(self, scores: np.ndarray, runs: list[list[dict]], beats: str) -> tuple[str, ...]:
        low, high = np.clip(interquartile_interval(100 * scores), 0, 100)
        ends = [metrics[-1] for metrics in runs]
        return (
            f"**{100 * interquartile_mean(scores):.1f}**" + interval(low, high, ".1f"),
            beats,
            f"{np.mean([row['kl_reference'] for row in ends]):.1f}",
            f"{np.mean([row['reply_tokens'] for row in ends]):.1f}",
            *self.more(runs),
            f"{np.median([row['seconds'] for row in ends]) / 60:.1f}",
            str(len(scores)),
        )


def _named(method: str) -> tuple[str, float | None]:
    """A method's own name, and the rate that follows its @."""
    name, at, rate = method.partition("@")
    try:
        return name, float(rate) if at else None
    except ValueError:
        raise ValueError(f"methods: {method!r} has no number after @, such as 3e-4") from None
