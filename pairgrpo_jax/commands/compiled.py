"""Compiled programs, kept between runs in a folder of the user's."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.words import take

OPTION = "--compilation-cache"
HELP = f"{OPTION} FOLDER keeps compiled programs there between runs (by default in the user's cache), off nowhere."
LIMIT = 2 * 2**30  # bytes of the user's cache
_SHORTEST = "jax_persistent_cache_min_compile_time_secs"


def keep_compiled(words: Sequence[str]) -> list[str]:
    """Has JAX keep what it compiles where `--compilation-cache` says; returns the other words.

    Without the option that is JAX_COMPILATION_CACHE_DIR, or a folder of this kind of processor in the user's cache.

    Raises:
      ValueError: for the option without a folder, or a folder that cannot be made.
    """
    taken, rest = take(words, (OPTION,))
    chosen = None
    for word, *value in taken:
        chosen = value[0] if value else word.partition("=")[2]
        if not chosen or chosen.startswith("--"):
            raise ValueError(f"{OPTION}: name a folder, or off")
    if chosen == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif chosen is not None:
        _use(Path(chosen).expanduser())
    elif jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir is None:
        folder = default_folder()
        try:
            _use(folder)
            prune(folder, LIMIT)
        except (ValueError, OSError) as error:  # nobody asked for it
            print(f"pairgrpo: compiled programs are not kept: {error}", file=sys.stderr)
    return rest


def default_folder() -> Path:
    """In the user's cache, one for each kind of processor: programs hold its instructions."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    about = {"machine": platform.machine()} | processor.fields("model name", "flags", "Features", "CPU part")
    return base / "pairgrpo_jax" / "compiled" / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def prune(folder: Path, limit: int) -> None:
    """Deletes the files that were not used for longest, until the others take at most `limit` bytes."""
    files = [(path.stat(), path) for path in folder.glob("*-cache")]
    total = sum(about.st_size for about, _ in files)
    for about, path in sorted(files, key=lambda file: file[0].st_atime):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= about.st_size


def _use(folder: Path) -> None:
    """Raises ValueError where the folder cannot be made, is another user's, or others may write there: it is run."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except OSError as error:
        raise ValueError(f"{OPTION}: {folder}: {error.strerror}; choose another, or off") from None
    if about.st_uid != os.getuid() or about.st_mode & 0o022 or not os.access(folder, os.W_OK):
        raise ValueError(
            f"{OPTION}: {folder} holds programs that are run, and must be yours alone to write: chmod go-w, or off"
        )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if _SHORTEST.upper() not in os.environ:
        jax.config.update(_SHORTEST, 0)
