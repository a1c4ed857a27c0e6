"""Compares methods on preferences, judged by a held-out reward head: `python -m experiments.preferences --help`.

Each (method, seed) is one run of `pairgrpo align` and leaves one small file in `results`; interrupted ones go on. One
half's head is the reward, the other half's judges replies to held-out prompts against those of the start. What counts
is that win rate: at the end, and where methods are equally far from the start.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from experiments.aligned import Aligned
from experiments.grid import carry_out
from experiments.plots import success
from pairgrpo_jax.commands import align_settings, cli
from pairgrpo_jax.lm.alignment import tuned


@dataclass(frozen=True)
class Preferences(Aligned):
    """What to compare."""

    domain: Literal["harmless", "helpful", "ultrafeedback"] = "harmless"
    """Whose two reward heads train and judge."""
    data: str = "tiny"
    """Prompts, as in pairgrpo align; of the domain."""
    split: str = "train"
    """As in pairgrpo align."""
    output: Path = Path("runs/preferences")
    """Folder of the runs, with their checkpoints; can be removed once all are finished."""
    results: Path = Path("docs/results/preferences")
    """Folder of the results, one file a run."""

    rates: ClassVar[tuple[float, ...]] = (1e-4, 3e-4, 1e-3)
    what: ClassVar[str] = "held-out win rate over the start"
    each: ClassVar[str] = "wins"
    start: ClassVar[float] = 0.5
    kept: ClassVar[tuple[str, ...]] = (
        *("iteration", "steps", "seconds", "reward", "kl_ref", "length", "grad_norm"),
        *("score", each, "win_rate_length_controlled", "kl_reference", "reply_tokens", "head_accuracy"),
    )
    more_columns: ClassVar[tuple[str, ...]] = ("at equal length", "the judge orders labelled pairs rightly")

    def preset(self, method: str) -> align_settings.Run:
        """Preferences' own: short replies, a head of each half of the data."""
        heads = {"judging": align_settings.Judging(f"{self.domain}-a"), "judge": f"{self.domain}-b"}
        return align_settings.Run(data=self.data, split=self.split, config=tuned(method), **heads)

    @property
    def folders(self) -> tuple[str, ...]:
        """`("harmless", "24")`."""
        return self.domain, str(int(self.iterations))

    def more(self, runs: list[list[dict]]) -> tuple[str, ...]:
        """Win rates without what longer replies win, and how good the judge is at these lengths."""
        rates, right = (
            np.mean([metrics[-1].get(name, np.nan) for metrics in runs])
            for name in ("win_rate_length_controlled", "head_accuracy")
        )
        return f"{100 * rates:.1f}", "-" if np.isnan(right) else f"{100 * right:.1f}%"


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one of them could not be finished."""
    args = cli.parse(Preferences(), sys.argv[1:], "python -m experiments.preferences", __doc__)
    draw = functools.partial(success, label="held-out win rate over the start, %", start=args.start, score=args.score)
    return carry_out(args, draw, f"{args.domain}, {args.iterations} batches", args.table_of)


if __name__ == "__main__":
    cli.run_main(main, "python -m experiments.preferences")
