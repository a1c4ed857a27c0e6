"""Checkpoints of a whole `TrainState` with Orbax: atomic, verified, with the newest few and the best kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pairgrpo_jax.training import processes
from pairgrpo_jax.training.state import require_alive

logger = logging.getLogger(__name__)
_SUMS, _SCORE = "sha256.json", "score.json"
# What reading a file that is damaged, cut off or gone raises. Any other OSError may pass, and is the caller's.
_DAMAGE = (ValueError, LookupError, AttributeError, FileNotFoundError, processes.PeerError)


class CheckpointError(RuntimeError):
    """No checkpoint of a folder can be read, or it holds another state than the one asked for."""


class Checkpoints:
    """The checkpoints of one run.

    Orbax writes each, with its score, under a temporary name and renames it, so a kill leaves the previous ones
    intact. The files' SHA-256 sums are added after that, at the next opening where a kill came between; a restore
    checks them first and falls back to the checkpoint before. A score that comes later is a file beside them. Several
    processes write and check together.

    As a context, it is closed at the end; after an error without waiting for processes that may be gone.
    """

    def __init__(
        self, folder: Path | str, config: dict[str, Any] | None = None, *, keep: int = 3, background: bool = False
    ):
        """Opens (or makes) `folder`.

        Args:
          folder: where the checkpoints are; `gs://bucket/folder` is one too.
          config: JSON-able settings, stored with each of them.
          keep: how many of the newest to keep, >= 1, besides the one with the best score.
          background: `save` returns as soon as it has the state's values, which may then be donated; what was saved is
            written meanwhile, and finished by whatever asks for checkpoints next.

        Raises:
          ValueError: for another kind of bucket.
          ModuleNotFoundError: if gs:// is asked for and gcsfs is not installed.
        """
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self.config, self.keep, self.background = config or {}, keep, background
        self._unfinished: int | None = None
        self._told = False
        options = ocp.CheckpointManagerOptions(enable_async_checkpointing=background)
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(_place(folder), options=options, item_handlers=handlers)
        self._scores = {step: self._score(step) for step in self.steps()}
        for step in self._scores:  # those that Orbax takes for committed
            if not _has_sums(self._folder(step)):
                _write_sums(self._folder(step))

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Writes `state` as checkpoint `step`; the highest finite `score` makes the best one.

        A score that is not finite is none. A whole checkpoint of that step is left as it is, which is told once, but
        for a score that it has not yet; one that is damaged is replaced. A step below the latest is taken, as after
        going back from a damaged one: what was saved last is kept longest, and `restore` takes the highest step that is
        whole.

        Raises:
          ValueError: for a state that was donated to an update, or a step below 0.
        """
        require_alive(state)
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        scored = {} if score is None or not math.isfinite(score) else {"score": float(score)}
        if self.holds(step):
            if scored and not self.scored(step):
                return self.add_score(step, scored["score"])
            return self._tell(step)
        if step in self.steps():
            self.manager.delete(step)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self.config))
        self.manager.save(step, args=items, custom_metadata=scored, force=True)
        self._scores[step], self._unfinished = scored.get("score"), step
        if not self.background:
            self.finish()

    def add_score(self, step: int, score: float) -> None:
        """Gives a checkpoint that has no score one; its state is not written again. One that is not finite is none.

        Raises:
          ValueError: if there is no checkpoint of that step.
        """
        if step not in self.steps():
            raise ValueError(f"step: no checkpoint {step} in {self.manager.directory}; it holds {self.steps()}")
        if math.isfinite(score) and not self.scored(step):
            _write(self._folder(step) / _SCORE, float(score))
            self._scores[step] = float(score)
            self._prune()

    def finish(self) -> None:
        """Waits until what was saved last is written, adds its sums, and deletes what need not be kept.

        Raises:
          Exception: what stopped the writing, as OSError where a disk is full.
        """
        if self._unfinished is None:
            return
        step, self._unfinished = self._unfinished, None
        self.manager.wait_until_finished()
        _write_sums(self._folder(step))
        self._prune()

    def _prune(self) -> None:
        newest = [*self.manager.all_steps()][-self.keep :]  # in the order of saving
        for old in sorted({*self.steps()} - {*newest, self.best()}):
            self.manager.delete(old)

    def restore(self, target: Any, step: int | Literal["best"] | None = None) -> tuple[int, Any]:
        """A checkpoint that is whole.

        Args:
          target: a state of the same structure, shapes and dtypes (its values do not matter).
          step: which one; "best" for the one with the best score; None for the newest that is not damaged.

        Returns:
          Its step and state.

        Raises:
          CheckpointError: if there is none, or it is damaged (the message has a reason for each), or holds a state of
            other shapes: the message has the first leaf that differs.
          OSError: if a file is there and cannot be read, as for want of permission.
        """
        wanted = self.best() if step == "best" else step
        reasons, candidates = [], [found for found in reversed(self.steps()) if step is None or found == wanted]
        for found in candidates:
            try:
                state = self._read(found, target)
            except _DAMAGE as error:
                reasons.append(f"checkpoint {found}: {(str(error) or type(error).__name__).splitlines()[0][:300]}")
                continue
            if reasons:
                why = "; ".join(reasons)
                logger.warning("damaged: %s; going back from checkpoint %d to checkpoint %d", why, candidates[0], found)
            return found, state
        raise CheckpointError(
            f"output: no readable checkpoint{'' if step is None else f' {step!r}'} in {self.manager.directory} "
            f"({'; '.join(reasons) or f'it holds {self.steps()}, the best is {self.best()}'}); "
            "restore one from a copy, or start a new run in another folder"
        )

    def made_with(self) -> dict[str, Any]:
        """The settings of the newest checkpoint whose settings can be read; empty where there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(*_DAMAGE):
                return self.manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config
        return {}

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        self.finish()
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the best score, the newest of several; None where none has a score."""
        scored = [(score, step) for step, score in self._scores.items() if score is not None and step in self.steps()]
        return max(scored)[1] if scored else None

    def scored(self, step: int) -> bool:
        """Whether the checkpoint of that step has a score."""
        return self._scores.get(step) is not None

    def holds(self, step: int) -> bool:
        """Whether there is a checkpoint of that step, and undamaged."""
        if step not in self.steps():
            return False
        try:
            _check_sums(self._folder(step))
        except _DAMAGE:
            return False
        return True

    def close(self) -> None:
        """Finishes, and releases the folder."""
        self.finish()
        self.manager.close()

    def __enter__(self) -> Checkpoints:
        """For use as a context."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """Closes; after an error sums are left to the next opening."""
        self._unfinished = None if error else self._unfinished
        self.close()

    def _tell(self, step: int) -> None:
        if not self._told:
            remedy = "save under another step, or in another folder"
            where = self.manager.directory
            logger.warning("checkpoint %d is in %s already, and was left as it is; %s", step, where, remedy)
        self._told = True

    def _folder(self, step: int) -> epath.Path:
        return self.manager.directory / str(step)

    def _score(self, step: int) -> float | None:
        folder = self._folder(step)
        try:
            if (later := folder / _SCORE).exists():
                return json.loads(later.read_text())
            return json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]["score"]
        except _DAMAGE:
            return None

    def _read(self, step: int, target: Any) -> Any:
        _check_sums(self._folder(step))
        stored = _leaves(self.manager.item_metadata(step)["state"].tree)
        wanted = _leaves(ocp.tree.serialize_tree(target, keep_empty_nodes=True))
        for name in [*wanted, *stored]:
            have, want = stored.get(name, "missing"), wanted.get(name, "missing")
            if have != want:
                raise CheckpointError(
                    f"target: {name} is {have} in checkpoint {step} of {self.manager.directory}, and {want} in the "
                    "target; make the target with the settings of that run, or start another in a new folder"
                )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        return self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))).state


def is_bucket(place: Any) -> bool:
    """Whether it is an address as `gs://bucket/folder`, and no folder here."""
    return "://" in str(place)


def _place(folder: Path | str) -> epath.Path:
    """A folder or a bucket, whose address is whole as it is: `epath` would resolve it to a folder here."""
    if not is_bucket(folder):
        return epath.Path(folder).resolve()
    if not str(folder).startswith("gs://"):
        known = "Orbax writes to folders and to gs://bucket/folder"
        raise ValueError(f"checkpoints: {folder} is neither: {known}; mount another kind of bucket as a folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise ModuleNotFoundError("checkpoints: gs:// needs gcsfs; pip install 'pairgrpo-jax[gcs]'", name="gcsfs")
    return epath.Path(folder)


def _leaves(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf, as `{"params.w": "float32[4,3]"}`; a key is stored as its data."""
    leaves = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            x = jax.eval_shape(jax.random.key_data, x)
        dtype = getattr(x, "dtype", None) or np.asarray(x).dtype
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        leaves[name] = f"{dtype}[{','.join(map(str, np.shape(x) if np.isscalar(x) else x.shape))}]"
    return leaves


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All below a folder; of a bucket, `epath` has no `rglob`, and its `walk` forgets the bucket."""
    for path in folder.iterdir():
        yield from _files(path) if path.is_dir() else [path]


def _sums(folder: epath.Path) -> dict[str, str]:
    """The sum of every file; each process reads its share of them."""
    files = sorted(path for path in _files(folder) if not path.name.startswith((_SUMS, _SCORE)))

    def read():
        mine = files[processes.share(len(files))]
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in mine}

    return {name: found for part in processes.gather(processes.together(read)) for name, found in part.items()}


def _has_sums(folder: epath.Path) -> bool:
    return processes.gather((folder / _SUMS).exists())[0]


def _write_sums(folder: epath.Path) -> None:
    _write(folder / _SUMS, _sums(folder))


def _write(path: epath.Path, content: Any) -> None:
    """A file beside a checkpoint's own, whole or not at all, by the process that leads."""

    def write():
        whole = is_bucket(path)  # a bucket's files are there whole or not at all
        partial = path if whole else path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content))
        if not whole:
            partial.rename(path)

    processes.on_lead(write)


def _check_sums(folder: epath.Path) -> None:
    """Raises ValueError if a file changed. A kill may have come before the sums were written."""
    if not _has_sums(folder):
        return
    found = _sums(folder)
    for name, expected in json.loads((folder / _SUMS).read_text()).items():
        if found.get(name) != expected:
            raise ValueError(f"{name} is {'damaged' if name in found else 'missing'}")
