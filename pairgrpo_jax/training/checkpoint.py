"""Checkpoints of a whole `TrainState` with Orbax: atomic, verified, with the newest few and the best kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

logger = logging.getLogger(__name__)
_SUMS = "sha256.json"


class CheckpointError(RuntimeError):
    """No checkpoint of a folder can be read."""


class Checkpoints:
    """The checkpoints of one run.

    Orbax writes each under a temporary name and renames it, so a kill leaves the previous ones intact. The files'
    SHA-256 sums are added after that; a restore checks them first and falls back to the checkpoint before.
    """

    def __init__(self, folder: Path | str, config: dict[str, Any] | None = None, *, keep: int = 3):
        """Opens (or makes) `folder`.

        Args:
          folder: where the checkpoints are.
          config: JSON-able settings, stored with each of them.
          keep: how many of the newest to keep, besides the one with the best score.
        """
        self.config = config or {}
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        # Synchronous: a donated buffer must not be overwritten while a background thread still reads it.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            enable_async_checkpointing=False,
        )
        self.manager = ocp.CheckpointManager(Path(folder).resolve(), options=options, item_names=("state", "config"))

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Writes `state` as checkpoint `step`; the highest finite `score` makes the best one.

        A whole checkpoint of that step is left as it is, a damaged one replaced.
        """
        if step in self.steps():
            try:
                return _check_sums(self._folder(step))
            except ValueError:
                self.manager.delete(step)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self.config))
        if score is not None and not math.isfinite(score):
            score = None  # Orbax ranks NaN above every number
        self.manager.save(step, args=items, metrics=None if score is None else {"score": float(score)}, force=True)
        if jax.process_index() == 0:
            _write_sums(self._folder(step))

    def restore(self, target: Any) -> tuple[int, Any]:
        """The newest checkpoint that is whole.

        Args:
          target: a state of the same structure, shapes and dtypes (its values do not matter).

        Returns:
          Its step and state.

        Raises:
          CheckpointError: if none can be read; the message has a reason for each.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        reasons = []
        for step in reversed(self.steps()):
            try:
                _check_sums(self._folder(step))
                return step, self.manager.restore(step, args=items).state
            except Exception as error:  # whatever a damaged file makes the reader raise
                reason = f"checkpoint {step}: {(str(error) or type(error).__name__).splitlines()[0][:300]}"
                logger.warning("%s; it is damaged or does not fit, trying the one before", reason)
                reasons.append(reason)
        raise CheckpointError(
            f"output: no readable checkpoint in {self.manager.directory} ({'; '.join(reasons)}); "
            "restore one from a copy, or start a new run in another folder"
        )

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(self.manager.all_steps())

    def close(self) -> None:
        """Releases the folder."""
        self.manager.close()

    def _folder(self, step: int) -> Path:
        return Path(self.manager.directory) / str(step)


def _sums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _SUMS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _write_sums(folder: Path) -> None:
    partial = folder / f"{_SUMS}.partial"
    sums = _sums(folder)
    partial.write_text(json.dumps(sums))
    partial.rename(folder / _SUMS)


def _check_sums(folder: Path) -> None:
    """Raises ValueError if a file changed. Killed right after its commit, a checkpoint has no sums but is whole."""
    if not (folder / _SUMS).exists():
        return
    found = _sums(folder)
    for name, expected in json.loads((folder / _SUMS).read_text()).items():
        if found.get(name) != expected:
            raise ValueError(f"{name} is {'damaged' if name in found else 'missing'}")
