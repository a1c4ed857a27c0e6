"""What a run leaves on disk: its folder, its settings and versions, and its metrics."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

_PACKAGES = ("pairgrpo-jax", "jax", "jaxlib", "flax", "optax", "distrax", "orbax-checkpoint", "numpy", "mujoco", "brax")


class RunFolderError(ValueError):
    """The output folder holds another run, or none to resume."""


def settings(config: Any) -> dict[str, Any]:
    """A (nested) dataclass as JSON-able values; paths become strings and tuples lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def open_folder(folder: Path, config: dict[str, Any], *, resume: bool, free: tuple[str, ...] = ()) -> None:
    """Claims `folder` for a run, or checks that the run in it can go on with `config`.

    Writes `config.json` and `versions.json`.

    Args:
      folder: the output folder.
      config: JSON-able settings, possibly nested.
      resume: go on with the run in `folder`; without one there, start it.
      free: top-level names that may differ on resume, because they do not change the meaning of the state.

    Raises:
      RunFolderError: if the folder holds a run (or anything else) and `resume` is False, or the settings differ.
    """
    path = folder / "config.json"
    if path.exists() and resume:
        _require_same(path, config, free)
    elif folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output: {folder} is a file; choose another --output")
    elif folder.exists() and any(folder.iterdir()):
        held = "holds another run: add --resume to go on with it, or" if path.exists() else "is not empty:"
        raise RunFolderError(f"output: {folder} {held} choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, config)
    _write(folder / "versions.json", versions())


def _require_same(path: Path, config: dict[str, Any], free: tuple[str, ...]) -> None:
    before, after = dict(flatten(json.loads(path.read_text()))), dict(flatten(config))
    names = (name for name in sorted(before.keys() | after.keys()) if name.split(".")[0] not in free)
    changed = [f"{n}: {before.get(n)!r} -> {after.get(n)!r}" for n in names if before.get(n) != after.get(n)]
    if changed:
        raise RunFolderError(
            f"resume: the run in {path.parent} was made with other settings ({'; '.join(changed)}); "
            "use those, or start a new run in another --output"
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as `("config.algo", value)` pairs."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def versions() -> dict[str, Any]:
    """Package versions and the hardware."""
    found = {d.metadata["Name"].lower(): d.version for d in metadata.distributions() if d.metadata["Name"]}
    packages = {name: found[name] for name in _PACKAGES if name in found}
    devices = [str(device.device_kind) for device in jax.devices()]
    return {"python": platform.python_version(), "machine": platform.platform(), "devices": devices, **packages}


def _write(path: Path, content: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.rename(path)


class MetricLog:
    """Metrics as JSON lines and for TensorBoard, cut back on resume to where the checkpoint was made."""

    def __init__(self, folder: Path, after: int = 0):
        """Opens the log of the run in `folder`; rows of an iteration beyond `after` are dropped."""
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["iteration"] <= after]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)

    def write(self, row: dict[str, Any]) -> None:
        """Adds one row; it must hold `iteration`, and `steps` for the TensorBoard axis. Lists are per seed."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("iteration", "steps"):
                self._board.add_scalar(name, float(np.mean(value)), row["steps"])

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line torn by a kill is left out."""
    path, rows = folder / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
