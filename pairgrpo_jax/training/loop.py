"""The host's loop around a compiled program: run a chunk, log, evaluate, checkpoint; stop cleanly on a signal."""

from __future__ import annotations

import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pairgrpo_jax.core.bounds import AtLeast, Settings
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.checkpoint import Checkpoints
from pairgrpo_jax.training.console import LineConsole
from pairgrpo_jax.training.run import MetricLog, NoLog
from pairgrpo_jax.training.state import TrainState, is_alive
from pairgrpo_jax.training.update import check_finite


@dataclass(frozen=True)
class Schedule(Settings):
    """When things happen, in iterations.

    Attributes:
      iterations: how many in all.
      chunk: how many in one call of the compiled program; calls of one other length fill up to an evaluation.
      evaluate_every: iterations between evaluations; there is one at the end too.
      save_every: iterations between checkpoints, made at the end of a chunk; every evaluation makes one too.
      steps_per_iteration: environment steps or tokens of one iteration and seed, for the logs.
      seeds: runs side by side in the program; the speed shown is that of all.
      evaluations: how many in all, spread evenly, in place of `evaluate_every`; at most one an iteration.

    Raises:
      ValueError: that names a field below 1.
    """

    iterations: Annotated[int, AtLeast(1)]
    chunk: Annotated[int, AtLeast(1)]
    evaluate_every: Annotated[int, AtLeast(1)]
    save_every: Annotated[int, AtLeast(1)]
    steps_per_iteration: int
    seeds: Annotated[int, AtLeast(1)] = 1
    evaluations: Annotated[int | None, AtLeast(1)] = None

    def evaluated(self) -> list[int]:
        """The iterations after which there is an evaluation."""
        places = range(self.evaluate_every, self.iterations, self.evaluate_every)
        if self.evaluations is not None:
            places = (-(-i * self.iterations // self.evaluations) for i in range(1, self.evaluations))
        return sorted({*places, self.iterations})

    def chunks(self, start: int = 0) -> Iterator[int]:
        """The lengths of the program's calls after iteration `start`: `chunk`, and at most one other."""
        ends = [0, *self.evaluated()]
        gaps = [end - max(begin, start) for begin, end in itertools.pairwise(ends) if end > start]
        whole = [end - begin for begin, end in itertools.pairwise(ends)]
        other = math.gcd(*(gap % self.chunk for gap in (*whole, *gaps))) or 1
        for gap in gaps:
            yield from [self.chunk] * (gap // self.chunk) + [other] * (gap % self.chunk // other)


class StopRequest:
    """Context in which SIGINT and SIGTERM ask the loop to stop after the current chunk; a second SIGINT interrupts."""

    signal: int | None = None

    def __enter__(self):
        """Installs the handlers, where this is the main thread."""
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        """Puts the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this chunk and saving; Ctrl-C again to abort", file=sys.stderr)


def train(
    program: Callable[[TrainState, int], tuple[TrainState, Mapping[str, Any]]],
    state: TrainState,
    schedule: Schedule,
    *,
    start: int,
    checkpoints: Checkpoints,
    log: MetricLog | NoLog,
    evaluate: Callable[[TrainState, int], dict[str, Any]],
    shown: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> tuple[TrainState, int, int | None]:
    """Trains from iteration `start` to the end of the schedule, or to a signal.

    Args:
      program: `(state, count) -> (state, metrics [count, ...])`, compiled; it may donate the state.
      state: where to start.
      schedule: when to evaluate and save.
      start: iterations already done.
      checkpoints: where to save.
      log: where metrics go; one row per iteration.
      evaluate: `(state, iteration) -> row`, with a number `score` that decides which checkpoint is the best. Where it
        raises, the state and its rows are kept, and the run that goes on from there begins with it.
      shown: metrics for the progress line and what they are called there, `score` among them.
      console: where progress goes.

    Returns:
      The last state, the iterations done, and the signal that stopped the run (None at the end).

    Raises:
      NonFiniteError: after too many non-finite updates in a row in all seeds, of which one alone is only warned of; the
        last good checkpoint is left as it is.
    """
    done, began = start, time.perf_counter() - log.seconds
    evaluated, diverged, stopped = set(schedule.evaluated()), frozenset(), 0
    with (
        StopRequest() as stop,
        _Progress(schedule, start, shown or {}, console or LineConsole()) as progress,
    ):
        if start in evaluated:
            _make_up(evaluate, state, start, schedule, checkpoints, log)
        for count in schedule.chunks(start):
            before, called = state, time.perf_counter()
            try:
                state, metrics = program(state, count)
                metrics = {name: np.asarray(x) for name, x in jax.device_get(metrics).items()}
            except Exception:
                _save_if_alive(checkpoints, done, before)
                raise
            seconds = time.perf_counter() - called
            diverged = check_finite(state, reported=diverged)
            rows = [_row(metrics, i, done + i + 1, schedule) for i in range(count)]
            done += count
            score, failure = None, None
            try:
                if done in evaluated:
                    rows[-1] |= (result := evaluate(state, done))
                    score = float(np.mean(result["score"]))
            except Exception as error:
                failure = error
            rows[-1]["seconds"] = round(time.perf_counter() - began, 3)
            for row in rows:
                log.write(row, held=failure is not None and row is rows[-1])
            if failure is not None:  # what was trained is not lost with its evaluation
                _save_if_alive(checkpoints, done, state)
                raise failure
            progress.show(rows, seconds)
            if progress.unread:
                stop.signal = signal.SIGPIPE
            if score is not None or done // schedule.save_every > (done - count) // schedule.save_every:
                checkpoints.save(done, state, score)
            if stopped := processes.highest(stop.signal or 0):
                break
        if not checkpoints.holds(done):  # where a signal came between
            checkpoints.save(done, state)
    return state, done, stopped or None


def _make_up(evaluate, state, start: int, schedule: Schedule, checkpoints: Checkpoints, log: MetricLog | NoLog) -> None:
    """Makes the evaluation in which a run ended, unless the log has it, and gives its score to the checkpoint."""
    score = processes.gather(log.score(start))[0]  # known where the log is
    if score is None:
        result = evaluate(state, start)
        log.amend(_row({}, 0, start, schedule) | {"seconds": log.seconds} | result)
        score = result["score"]
    if start not in checkpoints.steps():  # a state of the caller's
        checkpoints.save(start, state)
    checkpoints.add_score(start, float(np.mean(score)))


def _save_if_alive(checkpoints: Checkpoints, done: int, state: TrainState) -> None:
    """Keeps what was reached before a failure, unless the program had taken the state's memory already.

    All processes write a checkpoint, so none is made where the failure is one process's alone.
    """
    if done and is_alive(state) and processes.all_here("failure") and not checkpoints.holds(done):
        checkpoints.save(done, state)


def _row(metrics, index, iteration, schedule):
    row = {"iteration": iteration, "steps": iteration * schedule.steps_per_iteration}
    return row | {name: x[index].astype(float).tolist() for name, x in metrics.items()}


class _Progress:
    """A live line on a terminal; elsewhere a plain line per evaluation.

    Its speed is the program's since the line before, without evaluations, and without the first call, which compiles,
    once there has been another.
    """

    def __init__(self, schedule: Schedule, start: int, shown: Mapping[str, str], console: Console):
        self.schedule, self.start, self.shown, self.console = schedule, start, shown, console
        columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.unread = False  # whether nobody reads the console any more

    def __enter__(self):
        self.bar.__enter__()
        self.task = self.bar.add_task("compiling", total=self.schedule.iterations, completed=self.start)
        self.began, self.calls, self.work, self.busy = time.perf_counter(), 0, 0.0, 0.0
        if not self.console.is_terminal:
            lines = sum(done > self.start for done in self.schedule.evaluated())
            self._tell(f"compiling; progress is told at each evaluation ({lines} to come)")
        return self

    def __exit__(self, *error):
        self.bar.__exit__(*error)

    def show(self, rows, seconds):
        row = rows[-1]
        done, inner = row["iteration"], "tokens" in row
        elapsed = time.perf_counter() - self.began
        if self.calls == 1:
            self.work = self.busy = 0.0
        self.calls, self.busy = self.calls + 1, self.busy + seconds
        steps = self.schedule.steps_per_iteration * self.schedule.seeds
        self.work += sum(row["tokens"] if inner else steps for row in rows)
        named = {"score": "score"} | dict(self.shown)
        values = "  ".join(_told(words, np.mean(row[name])) for name, words in named.items() if name in row)
        left = elapsed * (self.schedule.iterations - done) / max(done - self.start, 1)
        unit = "tokens" if inner else "steps"
        where = f"batch {done} of {self.schedule.iterations}" if inner else f"{row['steps']:,} steps"
        line = f"{where}  {self.work / self.busy:,.0f} {unit}/s  {values}"
        self.bar.update(self.task, completed=done, description=line)
        if "score" in row:
            self._tell(f"{line}  {elapsed:.0f} s, {left:.0f} s left")
            if self.calls > 1:
                self.work = self.busy = 0.0

    def _tell(self, line):
        try:
            self.console.print(line)
        except BrokenPipeError:
            self.unread = True


def _told(words: str, value: Any) -> str:
    return f"no {words}" if np.isnan(value) else f"{words} {value:z.4g}"
