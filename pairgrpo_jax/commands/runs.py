"""What every training run of the command lines shares: its loop in a folder, how it ends, and how one knows it did."""

from __future__ import annotations

import hashlib
import itertools
import json
import signal
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from pairgrpo_jax.training import (
    Checkpoints,
    MetricLog,
    NoLog,
    Relay,
    RunFolderError,
    Schedule,
    TrainState,
    processes,
    read_metrics,
    require_alike,
    services,
    settings,
    train,
)
from pairgrpo_jax.training.checkpoint import is_bucket
from pairgrpo_jax.training.console import LineConsole
from pairgrpo_jax.training.run import flatten, renew_settings, require_same, versions, write_json

T = TypeVar("T")
DONE = "done"  # an empty file that marks a finished run
# May differ on --resume: they do not change what a state means, nor what a run measures. A dot leads into a part.
FREE = (
    "ignore_fields",
    "output",
    "resume",
    "keep",
    "async_saves",
    "export",
    "exported",
    "shown",
    "show_times",
    "tracker",
    "video_steps",
)
FREE += ("judging.reward_timeout", "judging.reward_retries", "judging.reward_on_error")
FREE += ("judging.comparing.judge_concurrency", "judging.comparing.judge_backoff", "judging.asking.judge_prices")


def make_console() -> Console:
    """Where a run says what it does; of several processes one speaks."""
    return LineConsole(quiet=not processes.leads())


def read_settings(folder: Path, read: Callable[[Any], T]) -> T:
    """What `read` makes of the settings in a run's folder; ValueError where there are none."""
    stored = folder / "config.json"
    try:
        return read(json.loads(stored.read_text()))
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        what = f"{stored}: these are no settings of a run ({type(error).__name__}: {error})"
        raise ValueError(f"{what}; choose another folder") from error


def require_mesh(run: Any) -> None:
    """Refuses several processes with different settings or code, or without a mesh that has the devices of all.

    Raises:
      ValueError: naming the setting.
    """
    if processes.count() == 1:
        return
    require_alike(settings(run))
    if run.mesh == "none":
        raise ValueError(f"mesh: {processes.count()} processes share the devices of a mesh; add --mesh data")


def require_trackers(run: Any) -> None:
    """Refuses a tracker that is not installed, has no key or whose host is silent; ModuleNotFoundError, ValueError."""
    processes.on_lead(lambda: services.check_trackers(run.tracker))


def require_checkpoints(run: Any) -> None:
    """Refuses a place of its own for checkpoints that cannot be opened, or that a new run would share with another.

    Raises:
      ValueError: naming the setting.
      ModuleNotFoundError: if it is a bucket, and what reads buckets is not installed.
    """
    if run.checkpoints is None:
        return
    try:
        with open_checkpoints(run) as found:
            steps = found.steps()
    except OSError as error:
        raise ValueError(f"checkpoints: {run.checkpoints} cannot be opened: {error}") from error
    if steps and not run.resume:
        where = f"checkpoints: {run.checkpoints} holds those of another run"
        raise ValueError(f"{where}; add --resume to go on with it, or choose another --checkpoints")


def open_log(run: Any, console: Console, after: int = 0) -> MetricLog | NoLog:
    """Where the metrics of a run go, in the process that leads; says where its trackers can be seen."""
    trackers = processes.on_lead(lambda: _open_trackers(run, console)) or ()
    return MetricLog(run.output, after, trackers) if processes.leads() else NoLog()


def _open_trackers(run: Any, console: Console) -> list[Relay]:
    config = dict(flatten(settings(run))) | {f"versions.{name}": value for name, value in versions().items()}
    opened = services.open_trackers(run.tracker, run.output, config)
    for relay in opened:
        console.print(f"tracker {relay.service.name}: {relay.service.where}", markup=False)
    return opened


def reading(run: Any) -> dict[str, Any]:
    """How the data of a run is read: options of `load_prompts` and `load_preferences`."""
    return {"split": run.split, "prompt_column": run.prompt_column, "system": run.system}


def train_in_folder(
    run: Any,
    program: Callable,
    state: TrainState,
    schedule: Schedule,
    *,
    evaluate: Callable[[TrainState, int], dict[str, Any]],
    shown: Mapping[str, str],
    console: Console,
) -> tuple[TrainState, int, int | None]:
    """`training.train` in `run.output`, from `state` or, with `run.resume`, from its last checkpoint.

    Args:
      run: the settings, with `output`, `resume`, `keep`, `async_saves` and `length`.
      program: see `training.train`, as the next two.
      state: where a new run starts.
      schedule: when things happen.
      evaluate: see `training.train`, as the next two.
      shown: metrics on the progress line, and what they are called there.
      console: where progress goes.

    Returns:
      The state, the iterations done, and the signal that stopped the run, if one did.
    """
    with open_checkpoints(run) as checkpoints:
        start = 0
        if run.resume and checkpoints.steps():
            require_own(run, checkpoints)
            start, state = checkpoints.restore(state)
            console.print(f"resuming {run.output} after {start} of {schedule.iterations} iterations")
        require_length(run, start, schedule.iterations)
        renew_settings(run.output, settings(run))
        log, complete = open_log(run, console, start), False
        try:
            ended = train(
                program,
                state,
                schedule,
                start=start,
                checkpoints=checkpoints,
                log=log,
                evaluate=evaluate,
                shown=shown,
                console=console,
            )
            complete = ended[-1] is None
            return ended
        except (ValueError, OSError) as error:  # not bad input any more: show where
            raise RuntimeError("training failed") from error
        finally:
            log.close(complete)


def digest_of(*parts: Iterable[Any]) -> str:
    """Of everything that some rows hold, in their order."""
    code = hashlib.sha256()
    for row in itertools.chain(*parts):
        code.update(repr(row).encode())
    return code.hexdigest()[:16]


def require_same_inputs(run: Any, inputs: Mapping[str, tuple[str, str]]) -> None:
    """Keeps digests of what a run reads, or refuses to go on with another: settings hold only where it lies.

    Args:
      run: the settings, with `output` and `resume`.
      inputs: by the name of the setting, where it lies and its digest.

    Raises:
      RunFolderError: where one is not what it was when the run began.
    """
    kept = run.output / "inputs.json"
    before = json.loads(kept.read_text()) if run.resume and kept.exists() else {}
    for name, (where, digest) in inputs.items():
        if before.setdefault(name, digest) != digest:
            what = f"{name}: {where} holds something else than when the run in {run.output} began"
            raise RunFolderError(f"{what}; resume with what it was, or begin anew with another --output")
    write_json(kept, before)


def open_checkpoints(run: Any) -> Checkpoints:
    """Those in the run's folder, or where it says."""
    where = run.checkpoints or run.output / "checkpoints"
    return Checkpoints(where, settings(run), keep=run.keep, background=run.async_saves)


def require_own(run: Any, checkpoints: Checkpoints) -> None:
    """Refuses checkpoints of other settings; ValueError that names the fields, beside `run.free`, that differ."""
    made_with = checkpoints.made_with() or settings(run)  # where none can be read, restoring says why
    what = f"checkpoints: those in {checkpoints.manager.directory} were"
    require_same(made_with, settings(run), run.free, what, "use those, or choose another --checkpoints")


def checkpoints_of(run: Any) -> str:
    """Where a run's checkpoints are, for `print_files`."""
    if run.checkpoints is None:
        return "checkpoints/"
    return run.checkpoints if is_bucket(run.checkpoints) else str(Path(run.checkpoints).absolute())


def require_length(run: Any, made: int, asked: int) -> None:
    """Refuses to end a run that is longer than asked, or whose metrics are elsewhere; one made longer is open again."""
    if made > asked:
        told = f"{run.output} has made {made} iterations, and {asked} are asked for"
        raise ValueError(f"{run.length}: {told}; ask for more")
    processes.on_lead(lambda: _require_metrics(run) if made == asked else (run.output / DONE).unlink(missing_ok=True))


def _require_metrics(run: Any) -> None:
    if not read_metrics(run.output):
        where = f"output: {checkpoints_of(run)} holds the end of the run, and {run.output} no metrics of it"
        raise ValueError(f"{where}; give the --output that it had, or make it longer")


def stopped_code(number: int, done: int, console: Console) -> int:
    """Says that a signal stopped the run; the exit code, 128 + the signal."""
    console.print(f"stopped by {signal.Signals(number).name} after {done} iterations and saved; go on with --resume")
    return 128 + number


def print_files(output: Path, files: dict[str, str], console: Console) -> None:
    """Prints where each thing is; names of several files are separated by ", "."""
    width = max(map(len, files))
    for name, where in files.items():
        parts = (part if is_bucket(part) else str(output / part) for part in where.split(", "))
        console.print(f"  {name:{width}}  {', '.join(parts)}")


def complete(program: Any, run: Any, title: str, console: Console) -> int:
    """Makes or resumes a run unless it is finished; its exit code. `program` has `execute`."""
    if is_finished(run):
        return 0
    console.print(f"[bold]{title}[/bold]")
    return program.execute(run, console)


def finished_metrics(runs: Iterable[Any]) -> list[list[dict]]:
    """The metrics of those runs that are finished."""
    return [read_metrics(run.output) for run in runs if is_finished(run)]


def is_finished(run: Any) -> bool:
    """Whether the run in `run.output` is complete, and as long as asked; ValueError that names the fields, beside
    `run.free`, that differ."""
    if not (run.output / DONE).exists():
        return False
    before = read_settings(run.output, dict)
    remedy = "move it away or choose another --output"
    require_same(before, settings(run), run.free, f"output: {run.output} was", remedy)
    return before[run.length] == getattr(run, run.length)
