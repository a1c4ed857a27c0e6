"""Results as small files of a repository: one JSON file a run, with the commit, the versions and the settings."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pairgrpo_jax
from pairgrpo_jax.training import changed_settings
from pairgrpo_jax.training.files import write_whole
from pairgrpo_jax.training.run import versions

PACKAGE = Path(pairgrpo_jax.__file__).parent
_HARDWARE = ("machine", "devices")


def commit() -> str:
    """The last commit that changed the package; ValueError unless the imported files are those of the commit."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE), *words, "--", "."], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"commit: {PACKAGE} is in no git clone, so a result could not say what made it")
        return done.stdout.rstrip()

    if changed := git("status", "--porcelain"):
        names = ", ".join(line.split()[-1] for line in changed.split("\n")[:3])
        raise ValueError(f"commit: {names} differ from what is committed; commit them or `git stash -u` first")
    return git("log", "-1", "--format=%H")


def origin() -> dict[str, Any]:
    """What a result carries of where it comes from: `commit` and `versions`."""
    return {"commit": commit(), "versions": versions()}


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(result, separators=(",", ":")) + "\n")


def read(path: Path, asked: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any] | None:
    """The result at `path`, or None without one; ValueError if it was made with settings other than `asked`."""
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        before = result["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"results: {path} is no result of a run ({error}); move it away") from error
    if changed := [name for name, _, _ in changed_settings(_unplaced(before), _unplaced(asked), free)]:
        where = f"results: {path} was made with other settings ({', '.join(changed)})"
        raise ValueError(f"{where}; move it away or choose another --results")
    return result


def _unplaced(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that name data by what it is called, wherever it lies."""
    return settings | ({"data": Path(settings["data"]).name} if "data" in settings else {})


def require_same_versions(folder: Path, now: dict[str, Any]) -> None:
    """Raises ValueError if the run in `folder` was begun with other package versions than those of `now`."""
    begun = folder / "versions.json"
    if begun.exists() and (changed := _differences(json.loads(begun.read_text()), now["versions"])):
        raise ValueError(f"output: {folder} was begun with other versions: {changed}; install those, or remove it")


def _differences(first: dict[str, Any], other: dict[str, Any]) -> str:
    """What differs between two sets of versions, whatever the machines; "" for nothing."""
    names = sorted(name for name in (first.keys() | other.keys()) - {*_HARDWARE} if first.get(name) != other.get(name))
    return ", ".join(f"{name} {first.get(name)} and {other.get(name)}" for name in names)


def require_one_origin(results: Iterable[dict[str, Any]], now: dict[str, Any] | None = None) -> None:
    """Raises ValueError unless all results, and `now`, are of one commit and of the same package versions."""
    found = [*results, *([now] if now else [])]
    for result in found:
        if result["commit"] != found[0]["commit"]:
            both = f"{found[0]['commit'][:12]} and {result['commit'][:12]}"
            raise ValueError(f"results: rows of different commits, {both}; check one out, or choose another --results")
        if changed := _differences(found[0]["versions"], result["versions"]):
            what = f"results: rows of different versions: {changed}"
            raise ValueError(f"{what}; install one, or choose another --results")
