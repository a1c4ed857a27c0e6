"""What a run leaves on disk: its folder, its settings and versions, and its metrics."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from pairgrpo_jax.core.bounds import RENAMED, to_values
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.files import write_whole
from pairgrpo_jax.training.trackers import Board, Relay, Tracker, figures

logger = logging.getLogger(__name__)
# What a kill while a folder is claimed may leave.
_BEGUN = ("lock", "config.partial", "versions.partial", "versions.json")
_PACKAGES = ("pairgrpo-jax", "jax", "jaxlib", "flax", "optax", "distrax", "orbax-checkpoint", "numpy", "mujoco", "brax")
# Set by environment variables of the same name in capitals.
_FLAGS = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_enable_x64", "jax_default_matmul_precision")
_FLAGS += ("jax_numpy_dtype_promotion", "jax_random_seed_offset")


class RunFolderError(ValueError):
    """The output folder holds another run, or none to resume."""


def settings(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as JSON-able values; paths become strings and tuples lists."""
    return to_values(config)


def open_folder(
    folder: Path | str, config: dict[str, Any], *, resume: bool, free: tuple[str, ...] = ()
) -> contextlib.AbstractContextManager:
    """Claims `folder` for a run, or checks that the run in it can go on with `config`.

    A new run gets `config.json` and `versions.json`; a resumed one keeps them, with a warning if versions differ; see
    `renew_settings`.

    Args:
      folder: the output folder.
      config: JSON-able settings, possibly nested.
      resume: go on with the run in `folder`; without one there, start it.
      free: names, of single settings or of whole parts, that may differ on resume, because they do not change the
        meaning of the state.

    Returns:
      The folder's lock, held until it is closed: two runs must not write one folder. Of several processes that make one
      run, one alone holds it.

    Raises:
      RunFolderError: if the folder holds a run (or anything else) and `resume` is False, the settings differ, or
        another process is running there.
    """
    return processes.on_lead(lambda: _claim(Path(folder), config, resume, free)) or contextlib.nullcontext()


def require_alike(config: dict[str, Any]) -> None:
    """Refuses processes of one run that differ in settings, versions or this library's code; ValueError names which."""
    code = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        code.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    ours = {name: value for name, value in versions().items() if name not in ("machine", "devices")}
    ours["local devices"] = jax.local_device_count()
    processes.agree(dict(flatten(config)) | ours | {"code": code.hexdigest()[:12]})


def require_free(folder: Path | str, *, resume: bool) -> None:
    """Refuses what `open_folder` would, before anything is computed: a folder of another run, or of anything else.

    Raises:
      RunFolderError: unless the folder is empty or not there, or holds a run that `resume` goes on with.
    """
    processes.on_lead(lambda: _require_free(Path(folder), resume))


def _require_free(folder: Path, resume: bool) -> None:
    run = (folder / "config.json").exists()
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output: {folder} is a file; choose another --output")
    if not (run and resume) and folder.exists() and any(path.name not in _BEGUN for path in folder.iterdir()):
        held = "holds another run: add --resume to go on with it, or" if run else "is not empty:"
        raise RunFolderError(f"output: {folder} {held} choose another --output")


def _claim(folder: Path, config: dict[str, Any], resume: bool, free: tuple[str, ...]) -> TextIO:
    path = folder / "config.json"
    _require_free(folder, resume)
    if path.exists() and resume:
        remedy = "use those, or start a new run in another --output"
        require_same(json.loads(path.read_text()), config, free, f"resume: the run in {folder} was", remedy)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunFolderError(
            f"output: another process is running in {folder}; wait for it, or choose another"
        ) from None
    if path.exists():
        _compare_versions(folder / "versions.json")
    else:
        write_json(folder / "versions.json", versions())
        write_json(path, config)
    return lock


def renew_settings(folder: Path | str, config: dict[str, Any]) -> None:
    """Writes what a resumed run goes on with, whose `free` settings may have changed."""
    processes.on_lead(lambda: write_json(Path(folder) / "config.json", config))


def _compare_versions(path: Path) -> None:
    """Warns of what differs from when the run began; RunFolderError if its random keys are of another kind."""
    before, now = json.loads(path.read_text()), versions()
    before = {name: now[name] for name in _FLAGS} | before  # runs of before the flags were kept
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if (name := _FLAGS[0]) in changed:
        raise RunFolderError(
            f"resume: the run in {path.parent} began with {name} {before[name]!r}, and it is {now[name]!r} now; "
            f"set {name.upper()}={before[name]}"
        )
    if changed:
        told = [f"{name} ({before[name]} -> {now[name]})" if name in _FLAGS else name for name in changed]
        logger.warning("%s differ from when the run began: it goes on, but not bit for bit", ", ".join(told))


def require_same(before: dict[str, Any], config: dict[str, Any], free: tuple[str, ...], what: str, remedy: str) -> None:
    """Refuses settings that differ, but for `free` ones; RunFolderError that names `what` was made so, and each."""
    changed = [f"{option(n)}: {old!r} -> {new!r}" for n, old, new in changed_settings(before, config, free)]
    if changed:
        told = f"{what} made with other settings ({'; '.join(changed)})"
        raise RunFolderError(f"{told}; {remedy}{_why(changed, config)}")


def _why(changed: list[str], config: dict[str, Any]) -> str:
    """Why a run cannot be made longer, where that is what was asked."""
    longer = any(line.split(":")[0] in ("steps", "iterations") for line in changed)
    annealed = dict(flatten(config)).get("config.optimizer.anneal")
    return (
        "; its learning rate anneals over its length, so only one made with --no-anneal goes on"
        if longer and annealed
        else ""
    )


def changed_settings(
    before: dict[str, Any], after: dict[str, Any], free: tuple[str, ...] = ()
) -> list[tuple[str, Any, Any]]:
    """Name and both values of all that differs between (nested) settings, but for `free` fields."""
    old, new = dict(flatten(before)), dict(flatten(after))
    names = (n for n in sorted(old.keys() | new.keys()) if n not in free and n.split(".")[0] not in free)
    return [(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def option(name: str) -> str:
    """What a nested setting is called on the command line: "clip" for "config.method.clip"; no two share one."""
    return name.removesuffix(".name").rsplit(".", 1)[-1]


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `("config.method.clip", value)` pairs, by the names of today."""
    for name, value in tree.items():
        name = RENAMED.get(name, name)
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _version(package: str) -> str | None:
    """Of an installed package; None for one that is not."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, Any]:
    """Package versions, the hardware, and flags of JAX that change numbers."""
    packages = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    devices = [str(device.device_kind) for device in jax.devices()]
    flags = {name: getattr(jax.config, name) for name in _FLAGS}
    return {
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": devices,
        **packages,
        **flags,
    }


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all, see `write_whole`."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


class NoLog:
    """The log of a process beside the one that leads."""

    seconds = 0.0

    def score(self, iteration: int) -> None:
        """None is known here."""

    def write(self, row: dict[str, Any], *, held: bool = False) -> None:
        """Keeps nothing."""

    def amend(self, more: dict[str, Any]) -> None:
        """Keeps nothing."""

    def close(self, complete: bool = True) -> None:
        """Nothing is open."""


class MetricLog:
    """Metrics as JSON lines, for TensorBoard and other trackers, cut back on resume to where the checkpoint was made.

    Attributes:
      seconds: what the kept rows took, the clock to go on from.
    """

    def __init__(self, folder: Path | str, after: int | None = None, trackers: Sequence[Tracker] = ()):
        """Opens the log of the run in `folder`, which is made.

        Args:
          folder: the run's.
          after: go on after this iteration. The rows up to it are kept and shown to the trackers again, as to
            TensorBoard, the last with what follows it; a `Relay` knows which it has sent. None: begin anew, as does a
            `Relay`.
          trackers: who else hears of the rows.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [] if after is None else [row for row in read_metrics(folder) if row["iteration"] <= after]
        self._file = self._replace(kept)
        self.seconds = max((row["seconds"] for row in kept if "seconds" in row), default=0.0)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self._trackers: tuple[Tracker, ...] = (Board(folder / "tensorboard"), *trackers)
        for relay in trackers if after is None else ():
            if isinstance(relay, Relay):
                relay.forget()
        self._row: dict[str, Any] = {}
        self._held = False  # the last row, from the trackers
        self._last: dict[str, Any] = {}  # evaluation, or row where there was none
        for row in kept:
            self._take(row)

    def score(self, iteration: int) -> Any:
        """What the evaluation after that iteration gave, if the last row holds one; else None."""
        return self._row.get("score") if self._row.get("iteration") == iteration else None

    def write(self, row: dict[str, Any], *, held: bool = False) -> None:
        """Adds one row; it must hold `iteration`, and `steps` for the TensorBoard axis. Lists are per seed.

        A number that is not finite is written as null, which `read_metrics` reads as nan. Trackers hear of a row that
        is `held` with what follows: the next row, what `amend` adds to it, or the end of a complete run.

        Raises:
          ValueError: for a row without them, or with what is no number or list of numbers; nothing is written.
        """
        row = _checked(row)
        self._file.write(_line(row))
        self._file.flush()
        self._take(row)
        if not held:
            self._show()

    def amend(self, more: dict[str, Any]) -> None:
        """Adds to the last row, if it is of this iteration, what was measured later, or else a row; see `write`."""
        if self._row.get("iteration") != more["iteration"]:
            return self.write(more)
        row, old = _checked(self._row | more), self._file
        self._file = self._replace([*read_metrics(self.path.parent)[:-1], row])
        old.close()
        self._row, self._held = row, True
        self._show()

    def _replace(self, rows: Sequence[dict[str, Any]]) -> TextIO:
        """Writes the file anew, so that a kill loses no row, and opens it."""
        write_whole(self.path, "".join(map(_line, rows)))
        return self.path.open("a")

    def _take(self, row: dict[str, Any]) -> None:
        self._show()
        self._row, self._held = row, True

    def _show(self) -> None:
        """Shows the last row to the trackers, if it is held."""
        if not self._held:
            return
        self._held = False
        if "score" in self._row or "score" not in self._last:
            self._last = self._row
        for tracker in self._trackers:
            tracker.log(self._row)

    def close(self, complete: bool = True) -> None:
        """Flushes and closes all; trackers get the final figures of a run that is `complete`."""
        self._file.close()
        with contextlib.ExitStack() as rest:  # all of them, whatever one raises
            for tracker in reversed(self._trackers):
                rest.callback(lambda finish: finish(figures(self._last) if complete else {}), tracker.finish)
            if complete:
                self._show()


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    row = {name: _plain(name, value) for name, value in row.items()}
    for name in ("iteration", "steps"):
        if not isinstance(row.get(name), (int, float)) or not math.isfinite(row[name]):
            raise ValueError(f"metrics: a row must have a number {name}, got {row.get(name, 'none')}")
    return row


def _plain(name: str, value: Any) -> Any:
    """A number or a list of them as Python's own; ValueError that names a metric that is neither."""
    try:
        x = np.asarray(value)
    except ValueError:  # lists of different lengths
        x = np.asarray(None)
    if not (jax.dtypes.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
        raise ValueError(f"metrics: {name} must be a number or a list of numbers, got {value!r}")
    return (x if x.dtype.kind in "biu" else x.astype(float)).tolist()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(without_nan(row), allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Nested values for strict JSON, which has neither nan nor infinity: null in their place."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(x) for x in value]
    return math.nan if value is None else value


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`, null as nan; a last line torn by a kill is left out."""
    path, rows = Path(folder) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append({name: _read(value) for name, value in json.loads(line).items()})
        except json.JSONDecodeError:
            break
    return rows
