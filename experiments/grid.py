"""Methods by seeds: which runs a comparison makes, what each leaves, and the sweep that each method is given."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments import results, sweeps
from pairgrpo_jax.commands.runs import FREE, complete, make_console
from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.training import read_metrics, settings

TUNING_SEEDS = range(100)  # the presets, too, were chosen on seed 0


class Cell(NamedTuple):
    """One run: a method, what its sweep changes (`sweeps.label`; "" for none), and a seed."""

    method: str
    trial: str
    seed: int

    @property
    def title(self) -> str:
        """In words."""
        return ", ".join(part for part in (self.method, self.trial, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class Grid(Settings, ABC):
    """What to compare. Each finished run leaves one small file, and tables are made of those."""

    step: tyro.conf.Positional[Literal["compare", "tune"]] = "compare"
    """compare the methods, or tune them: the same number of trials for each, on seeds that are never counted."""
    methods: tuple[str, ...] = ()
    """Methods; the first is the baseline."""
    seeds: Annotated[int, AtLeast(1)] = 10
    """Runs per method (tune: per trial)."""
    first_seed: Annotated[int | None, AtLeast(0)] = None
    """The first of them; default: 100, and 0 to tune. Seeds below 100 are for tuning alone."""
    output: Path = Path("runs/compare")
    """Folder of the runs, with their checkpoints; can be removed once all are finished."""
    results: Path = Path("docs/results")
    """Folder of the results, one file a run."""
    tuned_at: Annotated[float | None, AtLeast(1)] = None
    """Take each method's best trial of the sweep of this budget, in `results`; default: its preset."""
    report_only: bool = False
    """Make no runs; report on those that are finished."""

    program: ClassVar[Any]  # the module of the sub-command: `execute`
    budget: ClassVar[str]  # the field that says how long a run is
    kept: ClassVar[tuple[str, ...]]  # metrics that a result holds

    def __post_init__(self):
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods must name each method once, got {' '.join(self.methods)}")
        for method in self.methods:
            self.config(method)
        counted = self.step == "compare"
        if self.tuned_at and not counted:
            raise ValueError("tuned_at: a sweep starts from presets; leave out --tuned-at")
        if any((seed in TUNING_SEEDS) == counted for seed in self.all_seeds):
            kept = f"seeds 0 to {TUNING_SEEDS[-1]} are for tuning alone"
            raise ValueError(f"first_seed={self.all_seeds[0]}, seeds={self.seeds}: {kept}")

    @abstractmethod
    def config(self, method: str) -> Any:
        """A method's tuned settings; ValueError for anything else."""

    @abstractmethod
    def trials(self, method: str) -> list[dict[str, Any]]:
        """The changes to a method's settings that its sweep tries."""

    @abstractmethod
    def run(self, cell: Cell, config: Any, output: Path) -> Any:
        """The run of a cell in a folder."""

    @property
    @abstractmethod
    def folders(self) -> tuple[str, ...]:
        """Folders, within `results`, of this budget."""

    @property
    def all_seeds(self) -> range:
        """Every seed, in order."""
        start = TUNING_SEEDS.stop if self.step == "compare" else 0
        start = start if self.first_seed is None else self.first_seed
        return range(start, start + self.seeds)

    @property
    def where(self) -> Path:
        """The folder of the results of this budget."""
        return Path(self.results, *self.folders)

    @property
    def table(self) -> str:
        """The name of its table's file, without its suffix."""
        return self.step

    def sweep(self, method: str) -> dict[str, dict[str, Any]]:
        """A method's trials by their labels."""
        return {sweeps.label(trial): trial for trial in self.trials(method)}

    def cells(self) -> list[Cell]:
        """Every run, seed by seed so that a table is whole early."""
        if self.step == "tune":
            return [Cell(m, trial, seed) for seed in self.all_seeds for m in self.methods for trial in self.sweep(m)]
        best = {method: self.best_trial(method) if self.tuned_at else "" for method in self.methods}
        return [Cell(method, best[method], seed) for seed in self.all_seeds for method in self.methods]

    def run_of(self, cell: Cell, commit: str = "") -> Any:
        """The run of a cell; those of another commit are not gone on with."""
        output = Path(self.output, commit[:12], *self.folders, _part(cell))
        trial = self.sweep(cell.method)[cell.trial] if cell.trial else {}
        return self.run(cell, self.config(cell.method).replace(**trial), output)

    def path_of(self, cell: Cell) -> Path:
        """Where a result lives."""
        return (self.where / _part(cell)).with_suffix(".json")

    def result_of(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's result, if it is finished; ValueError if it is one of other settings."""
        return results.read(self.path_of(cell), settings(self.run_of(cell)), FREE)

    def finished(self) -> dict[Cell, list[dict]]:
        """The metrics of the cells that are finished; ValueError if there are none, or not of one commit."""
        if not (found := self._finished(self.cells())):
            raise ValueError(f"results: no finished run in {self.results}; leave out --report-only")
        return found

    def _finished(self, asked: list[Cell]) -> dict[Cell, list[dict]]:
        found = {cell: result for cell in asked if (result := self.result_of(cell))}
        results.require_one_origin(found.values())
        return {cell: result["metrics"] for cell, result in found.items()}

    def beside(self) -> list[str]:
        """Results of this budget that are not asked for, as `hard/seed103`; the folder's picture is of them too."""
        asked = {self.path_of(cell) for cell in self.cells()}
        depths, tuning = {len(path.parts) for path in asked}, self.step == "tune"
        found = {path for path in self.where.rglob("seed*.json") if len(path.parts) in depths}
        found = {path for path in found if (int(path.stem.removeprefix("seed")) in TUNING_SEEDS) == tuning}
        return sorted(str(path.relative_to(self.where).with_suffix("")) for path in found - asked)

    def score(self, row: dict) -> float:
        """What an evaluation, a row of metrics, comes to: more is better."""
        return row["score"]

    def best_trial(self, method: str) -> str:
        """The trial with the highest mean score over the tuning seeds that `tune` has left; ValueError if none."""
        changes = {"step": "tune", "tuned_at": None, "first_seed": 0, "seeds": 1, self.budget: self.tuned_at}
        tune = dataclasses.replace(self, **changes)
        folder = tune.path_of(Cell(method, next(iter(self.sweep(method))), 0)).parent
        seeds = [seed for seed in TUNING_SEEDS if (folder / f"seed{seed}.json").exists()]
        asked = [Cell(method, trial, seed) for trial in self.sweep(method) for seed in seeds]
        scores = {cell: self.score(metrics[-1]) for cell, metrics in tune._finished(asked).items()}
        if not seeds or len(scores) < len(asked):
            what = f"the sweep of {method} at {self.tuned_at:.0f} {self.budget}"
            raise ValueError(f"tuned_at: {what} is not whole; make it with `tune`")
        return max(self.sweep(method), key=lambda trial: np.mean([scores[Cell(method, trial, s)] for s in seeds]))

    def make_missing(self, console: Console) -> tuple[int, dict[Cell, str]]:
        """Makes the runs without a result: the exit code of a signal, and why others could not be finished."""
        found, failed = {cell: self.result_of(cell) for cell in self.cells()}, {}
        if not (missing := [cell for cell in found if found[cell] is None]):
            return 0, {}
        made_by = results.origin()
        results.require_one_origin([result for result in found.values() if result], made_by)
        for cell in missing:
            code, failure = self._make(cell, made_by, console)
            if code:
                return code, failed
            failed |= {cell: failure} if failure else {}
        return 0, failed

    def _make(self, cell: Cell, made_by: dict[str, Any], console: Console) -> tuple[int, str]:
        run = self.run_of(cell, made_by["commit"])
        results.require_same_versions(run.output, made_by)
        try:
            if code := complete(self.program, run, cell.title, console):
                return code, ""
        except Exception as error:  # whatever ended this run, the others are made
            cause = error.__cause__ or error
            return 0, f"{type(cause).__name__}: {cause}"
        curve = [{name: _short(row[name]) for name in self.kept if name in row} for row in read_metrics(run.output)]
        meant = {name: value for name, value in settings(run).items() if name not in FREE}
        results.write(self.path_of(cell), {**cell._asdict(), **made_by, "settings": meant, "metrics": curve})
        return 0, ""


def rows_of(found: dict[Cell, list[dict]]) -> dict[str, dict[int, list[dict]]]:
    """The metrics of each method (and trial), by seed."""
    rows = {}
    for cell, metrics in found.items():
        rows.setdefault(f"{cell.method} {cell.trial}".strip(), {})[cell.seed] = metrics
    return rows


def runs_of(rows: dict[str, dict[int, list[dict]]]) -> dict[str, list[list[dict]]]:
    """The metrics of each method, one list a run, whatever its seed."""
    return {method: [*runs.values()] for method, runs in rows.items()}


def carry_out(
    grid: Grid,
    draw: Callable[[dict[str, list[list[dict]]], Path, str], None],
    title: str,
    table_of: Callable[[dict[str, dict[int, list[dict]]]], str],
) -> int:
    """Makes the runs that are missing, draws and tells; the exit code, 1 if one of them could not be finished.

    Args:
      grid: what to compare.
      draw: `(runs, path, title)` of `runs_of`, see `experiments.plots`.
      title: of the picture.
      table_of: of `rows_of`, in Markdown.
    """
    console, failed = make_console(), {}
    if not grid.report_only:
        code, failed = grid.make_missing(console)
        if code:
            return code
    if len(failed) < len(grid.cells()):
        _report(grid, draw, title, table_of, console)
    for cell, failure in failed.items():
        console.print(f"not finished: {cell.title}: {failure}", markup=False)
    return 1 if failed else 0


def _report(grid: Grid, draw: Callable, title: str, table_of: Callable, console: Console) -> None:
    found = grid.finished()
    rows, table, picture = rows_of(found), f"{grid.table}.md", f"{grid.step}.png"
    made = table_of(rows)
    if missing := [cell.title for cell in grid.cells() if cell not in found]:
        made += f"\n\nNot finished, and not counted: {'; '.join(missing)}."
    console.print(made, markup=False)
    if others := grid.beside():
        kept = f"{len(others)} more results are there ({', '.join(others[:3])}{', ...' * (len(others) > 3)})"
        console.print(f"\nin {grid.where}: nothing written, as {kept}; ask for them too to draw all", markup=False)
        return
    draw(runs_of(rows), grid.where / picture, title)
    (grid.where / table).write_text(made + "\n")
    console.print(f"\nin {grid.where}: {table}, {picture}")


def _part(cell: Cell) -> Path:
    """`hard-value/seed100`, or `hard-value/learning_rate=0.005-delta_0=0.03/seed0`."""
    names = (cell.method, cell.trial, f"seed{cell.seed}")
    return Path(*(name.replace(":", "-").replace(",", "-") for name in names))


def _short(value: Any) -> Any:
    """Numbers of six digits; those of the one seed of a run without their list."""
    if isinstance(value, list):
        return _short(value[0]) if len(value) == 1 else [_short(x) for x in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
