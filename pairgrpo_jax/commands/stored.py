"""Finished runs as they are stored: run folders, and the small result files of `experiments`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairgrpo_jax.commands.runs import DONE
from pairgrpo_jax.training import changed_settings, read_metrics

# Of no meaning for what a run measures: where it was made, and what differs between the rows of one table.
APART = ("config", "seed", "seeds", "output", "resume", "keep", "tracker", "export", "exported", "shown", "show_times")
APART += ("video_steps", "ignore_fields")


@dataclass(frozen=True)
class Stored:
    """One seed of a finished run: who made it, and its metrics, a number each."""

    method: str
    seed: int
    path: Path
    settings: dict[str, Any]
    versions: dict[str, Any]
    commit: str
    rows: list[dict[str, Any]]

    @property
    def setting(self) -> str:
        """What runs of one table share, as text."""
        return json.dumps({k: v for k, v in self.settings.items() if k not in APART}, sort_keys=True)


def read_stored(folder: Path) -> tuple[list[Stored], list[str]]:
    """Every finished run below a folder, and what is there but cannot be counted, with the reason.

    Raises:
      ValueError: without any run.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: {folder} is no folder; name one of runs, or of results such as docs/results")
    found, left = [], []
    for path in sorted({*folder.rglob("seed*.json"), *folder.rglob("config.json")}):
        try:
            if path.name != "config.json":
                found.append(_of_file(path))
            elif not (path.parent / "metrics.jsonl").exists():
                continue  # a model's
            elif (path.parent / DONE).exists():
                found += _of_folder(path.parent)
            else:
                left.append(f"{path.parent}: not finished; go on with --resume")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            left.append(f"{path}: cannot be read ({type(error).__name__}: {error})")
    if not found:
        raise ValueError(f"folder: no finished run in {folder}" + (f" ({'; '.join(left)})" if left else ""))
    return found, left


def _of_file(path: Path) -> Stored:
    """A result of `experiments.compare` or `experiments.sums`."""
    kept = json.loads(path.read_text())
    name = f"{kept['method']} {kept['trial']}".strip()
    rows = [_row(row, 0) for row in kept["metrics"]]
    return Stored(name, kept["seed"], path, kept["settings"], kept["versions"], kept["commit"], _scored(rows))


def _of_folder(folder: Path) -> list[Stored]:
    """A run of `pairgrpo cheetah` or `pairgrpo align`, one for each of its seeds."""
    settings, versions = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "versions"))
    rows, method = read_metrics(folder), settings["config"]["method"]["name"]
    seeds = range(settings["seed"], settings["seed"] + settings.get("seeds", 1))
    return [
        Stored(method, seed, folder, settings, versions, "", _scored([_row(row, i) for row in rows]))
        for i, seed in enumerate(seeds)
    ]


def _row(row: dict[str, Any], place: int) -> dict[str, Any]:
    """The part of one seed; lists that are not of seeds are left out."""
    each = {name: x[place] if isinstance(x, list) and len(x) > place else x for name, x in row.items()}
    return {name: x for name, x in each.items() if isinstance(x, (int, float)) and not isinstance(x, bool)}


def _scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not rows or "score" not in rows[-1] or not np.isfinite(rows[-1]["score"]):
        raise ValueError("its last row holds no finite score")
    return rows


def differences(first: Stored, other: Stored) -> list[str]:
    """What two runs of different tables do not share, in words."""
    changed = changed_settings(json.loads(first.setting), json.loads(other.setting))
    return [f"{name}: {ours!r} -> {theirs!r}" for name, ours, theirs in changed]
