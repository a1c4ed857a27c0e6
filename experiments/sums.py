"""Compares methods on sums, of one digit as the default job of `pairgrpo align`: `python -m experiments.sums --help`.

Each (method, seed) is one run of `pairgrpo align` and leaves one small file in `results`; interrupted ones go on.
`tune` tries the same learning rates for each method, on seeds that no comparison counts. What counts is the share of
held-out problems, which no batch contains, that are answered rightly by one sampled reply (pass@1): at the end, and
where methods are equally far from the start.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from experiments.aligned import Aligned
from experiments.grid import carry_out
from experiments.plots import success
from pairgrpo_jax.commands import align_settings, cli
from pairgrpo_jax.core.bounds import AtLeast

GOAL = 0.9
"""Share of right answers whose time is reported."""
_PRESET = align_settings.preset("hard")


@dataclass(frozen=True)
class Sums(Aligned):
    """What to compare."""

    output: Path = Path("runs/sums")
    """Folder of the runs, with their checkpoints; can be removed once all are finished."""
    results: Path = Path("docs/results/sums")
    """Folder of the results, one file a run."""
    iterations: Annotated[int, AtLeast(1)] = _PRESET.iterations
    """Batches of each run."""
    evaluations: Annotated[int, AtLeast(1)] = _PRESET.evaluations
    """Evaluations of each run; what a method scores at a KL is read off between them."""
    digits: Annotated[int, AtLeast(1)] = 1
    """Digits of each of the two terms."""
    evaluation_prompts: Annotated[int, AtLeast(1)] = _PRESET.evaluation_prompts
    """Held-out problems of each evaluation."""

    rates: ClassVar[tuple[float, ...]] = (2e-4, 4e-4, 8e-4)
    what: ClassVar[str] = "held-out pass@1"
    each: ClassVar[str] = "held_out/verify:own/each"
    start: ClassVar[str] = "held_out/verify:own/rival"
    kept: ClassVar[tuple[str, ...]] = (
        *("iteration", "steps", "seconds", "reward", "kl_ref", "length", "grad_norm"),
        *("score", each, start, "kl_reference", "reply_tokens"),
    )
    more_columns: ClassVar[tuple[str, ...]] = (f"runs at {GOAL:.0%}, after batches",)

    def preset(self, method: str) -> align_settings.Run:
        """The default job, of so many digits."""
        data = _PRESET.data.replace("digits=1", f"digits={self.digits}")
        return align_settings.preset(method).replace(data=data, evaluation_prompts=self.evaluation_prompts)

    @property
    def folders(self) -> tuple[str, ...]:
        """`("48",)`, or `("2-digits", "112")`."""
        return (*([f"{self.digits}-digits"] if self.digits > 1 else []), str(int(self.iterations)))

    def more(self, runs: list[list[dict]]) -> tuple[str, ...]:
        """How many runs came to `GOAL`, and when."""
        reached = [at for metrics in runs if (at := _reached(metrics)) is not None]
        return (f"{len(reached)} of {len(runs)}" + (f", {np.median(reached):.0f}" if reached else ""),)


def main() -> int:
    """Makes the runs that are missing and reports; 1 if one of them could not be finished."""
    args = cli.parse(Sums(), sys.argv[1:], "python -m experiments.sums", __doc__)
    draw = functools.partial(success, label="held-out sums answered rightly, %", start=args.start, score=args.score)
    digits = "one digit" if args.digits == 1 else f"{args.digits} digits"
    return carry_out(args, draw, f"sums of {digits}, {args.iterations} batches", args.table_of)


def _reached(metrics: list[dict]) -> int | None:
    """The first evaluated batch at `GOAL`."""
    return next((row["iteration"] for row in metrics if row.get("score", 0) >= GOAL), None)


if __name__ == "__main__":
    cli.run_main(main, "python -m experiments.sums")
