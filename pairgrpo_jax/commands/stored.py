"""Finished runs as they are stored: run folders, and the small result files of `experiments`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pairgrpo_jax.commands.runs import DONE, FREE, read_settings
from pairgrpo_jax.core.bounds import from_values, to_values
from pairgrpo_jax.training import changed_settings, read_metrics
from pairgrpo_jax.training.run import flatten

# Of no meaning for what a run measures, and what differs between the rows of one table.
APART = (*FREE, "config", "seed", "seeds", "checkpoints")
# Whatever a file may hold, or be.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


class Quantity(NamedTuple):
    """What a score is, in words, and whether it lies between 0 and 1."""

    words: str
    share: bool = False


UNMEASURED = Quantity("not measured, as a judge of pairs scores no reply, and no held-out head did")
WIN_RATE = Quantity("held-out win rate over the start, by the reward head that judges", share=True)


@dataclass(frozen=True)
class Stored:
    """One seed of a finished run: who made it, and its metrics, a number each; `score` is of the `quantity`.

    Raises:
      ValueError: for a field of another kind, settings without a `config`, or a last row without a finite score, where
        it is measured.
    """

    method: str
    seed: int
    path: Path
    settings: dict[str, Any]
    versions: dict[str, Any]
    commit: str
    quantity: Quantity
    rows: list[dict[str, float]]

    def __post_init__(self):
        kinds = {"method": str, "seed": int, "settings": dict, "versions": dict, "commit": str}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name} is no {kind.__name__}")
        if not isinstance(self.settings.get("config"), dict):
            raise ValueError("its settings hold no config")
        measured = self.quantity != UNMEASURED
        if not self.rows or (measured and not np.isfinite(self.rows[-1].get("score", np.nan))):
            raise ValueError("its last row holds no finite score")
        if any("score" in row and not np.isfinite(row.get("steps", np.nan)) for row in self.rows):
            raise ValueError("a row with a score holds no steps")
        text = [self.method, self.commit, self.setting, self.config, *self.versions.items()]
        json.dumps(text, ensure_ascii=False).encode()  # half a surrogate pair could not be written to the page

    @property
    def setting(self) -> str:
        """What runs of one table share, as text: settings, and what their score is."""
        told = {k: v for k, v in flatten(self.settings) if k not in APART and k.split(".")[0] not in APART}
        return json.dumps(told | {"score": self.quantity.words}, sort_keys=True)

    @property
    def config(self) -> str:
        """What runs of one row share besides, as text."""
        return json.dumps(self.settings["config"], sort_keys=True)

    @property
    def command(self) -> str | None:
        """The command line that makes the run again; None where this version has no words for its settings."""
        from pairgrpo_jax.commands import align_settings, cheetah

        module = cheetah if "env" in self.settings else align_settings
        try:
            run = from_values(module.Run, self.settings)
            whole = to_values(run.config) == self.settings["config"]  # else a field's meaning then is not known
            return run.command if whole else None
        except UNREADABLE:
            return None


def read_stored(folder: Path) -> tuple[list[Stored], list[str]]:
    """Every finished run below a folder, and what is there but is not counted, with the reason.

    A seed that is stored twice, as a folder and as a result say, is counted once, where it comes first.

    Raises:
      ValueError: without any run.
    """
    if not folder.is_dir():
        raise ValueError(f"folder: {folder} is no folder; name one of runs, or of results such as docs/results")
    found: dict[tuple, Stored] = {}
    left = []
    for path in sorted({*folder.rglob("seed*.json"), *folder.rglob("config.json")}):
        try:
            for run in _of_file(path) if path.name != "config.json" else _of_folder(path.parent):
                first = found.setdefault((run.setting, run.config, run.seed), run)
                if first is not run:
                    left.append(f"{run.path}: seed {run.seed} is the same run as {first.path}")
        except _NotCounted as why:
            left.append(f"{path.parent}: {why}")
        except UNREADABLE as error:
            left.append(f"{path}: cannot be read ({type(error).__name__}: {error})")
    left = [line.encode(errors="replace").decode() for line in left]  # a name on disk may be no text
    if not found:
        raise ValueError(f"folder: no finished run in {folder}" + (f" ({'; '.join(left)})" if left else ""))
    return list(found.values()), left


class _NotCounted(Exception):
    """A folder is whole, but holds no finished run of a method."""


def _of_file(path: Path) -> list[Stored]:
    """A result of `experiments.compare`, `experiments.sums` or `experiments.preferences`."""
    kept = json.loads(path.read_text())
    name = f"{kept['method']} {kept['trial']}".strip()
    quantity = _quantity(kept["settings"], kept["metrics"][-1])
    rows = [_row(row, quantity) for row in kept["metrics"]]
    return [Stored(name, kept["seed"], path, kept["settings"], kept["versions"], kept["commit"], quantity, rows)]


def _of_folder(folder: Path) -> list[Stored]:
    """A run of `pairgrpo cheetah` or `pairgrpo align`, one for each of its seeds; nothing for a model's folder."""
    if not (folder / "metrics.jsonl").exists():
        return []
    settings = read_settings(folder, dict)
    if "config" not in settings:
        raise _NotCounted("no run of a method")
    if not (folder / DONE).exists():
        raise _NotCounted("not finished; go on with --resume")
    versions = json.loads((folder / "versions.json").read_text())
    rows, method = read_metrics(folder), settings["config"]["method"]["name"]
    quantity = _quantity(settings, rows[-1])
    many: int | None = settings.get("seeds")
    if (seeds := 1 if many is None else many) < 1:
        raise ValueError(f"seeds={seeds}")
    parts = ([_row(row, quantity, i, many) for row in rows] for i in range(seeds))
    return [
        Stored(method, settings["seed"] + i, folder, settings, versions, "", quantity, part)
        for i, part in enumerate(parts)
    ]


def _quantity(settings: dict[str, Any], last: dict[str, Any]) -> Quantity:
    """What runs of these settings, with this last row, are compared by.

    That is their own `score`, unless a reward head trains them: their score is then what that head gives, and what
    counts are the wins by the head that judges, which they have not seen.
    """
    if "env" in settings:
        return Quantity("return of the deterministic policy")
    reward = (settings.get("judging") or {}).get("reward", "")
    compares = reward.startswith("judge:")  # and gives no rewards
    reward = "" if compares else reward
    if "wins" in last and ":" not in reward:
        return WIN_RATE
    if reward:
        named = f"the first of {reward}" if "," in reward else reward
        right = reward.startswith("verify:")
        return Quantity(f"held-out {'pass@1' if right else 'mean reward'} by {named}", right)
    if "implicit_accuracy" in last:
        return Quantity("accuracy of implicit rewards on held-out pairs", share=True)
    return UNMEASURED if compares else Quantity("the runs' own; their settings do not say of what")


def _row(row: dict[str, Any], quantity: Quantity, place: int = 0, seeds: int | None = None) -> dict[str, float]:
    """The part of one of `seeds`; lists that are not of seeds are left out, all of them for None."""
    each = {name: x[place] if isinstance(x, list) and len(x) == seeds else x for name, x in row.items()}
    if quantity == WIN_RATE and "score" in row:
        each["score"] = float(np.mean(row["wins"]))
    if quantity == UNMEASURED and "score" in row:
        each["score"] = float("nan")  # 0 in runs of before 0.2
    return {name: float(x) for name, x in each.items() if isinstance(x, (int, float)) and not isinstance(x, bool)}


def differences(first: Stored, other: Stored) -> list[str]:
    """What two runs of different tables do not share, in words."""
    changed = changed_settings(json.loads(first.setting), json.loads(other.setting))
    return [f"{name}: {ours!r} -> {theirs!r}" for name, ours, theirs in changed]
