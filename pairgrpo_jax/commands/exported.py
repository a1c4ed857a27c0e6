"""What a run of `pairgrpo align` stands for where a model is asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pairgrpo_jax.commands.runs import read_settings
from pairgrpo_jax.core.bounds import from_values
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.methods import Method
from pairgrpo_jax.training import processes


def exported(name: str) -> str:
    """The model that a run exported, or the name of another model as it is."""
    folder = Path(name)
    if (folder / "versions.json").exists() and not (folder / "model" / "config.json").exists():
        raise ValueError(f"{name}: this run has exported no model; finish it, without --no-export")
    return str(folder / "model") if (folder / "model" / "config.json").exists() else name


def started_from(name: str) -> str:
    """The model that a run trained; smollm2 for other models."""
    return settings_of(name).get("model", "smollm2")


def method_of(name: str) -> Method | None:
    """The method of the run that `name` is; None for other models."""
    kept = settings_of(name).get("config", {}).get("method")
    return from_values(Method, kept) if kept else None


def chat_of(name: str, chat: Chat) -> Chat:
    """How conversations become text: as asked for, or else as in the run that `name` is."""
    if chat != Chat():
        return chat
    kept = from_values(Chat, settings_of(name).get("chat", {}))
    if kept != chat and processes.leads():
        print(f"pairgrpo: conversations become text as in {name}: {kept}", file=sys.stderr)
    return kept


def settings_of(name: str) -> dict[str, Any]:
    """Of the run that `name` is, or that exported it; empty for other models."""
    folder = run_of(name)
    return {} if folder is None else read_settings(folder, dict)


def run_of(name: str) -> Path | None:
    """The folder of the run that `name` is, or that exported it; a model's own folder has a config.json, too."""
    folder = Path(os.path.abspath(name))
    parts = [folder, folder.parent] if folder.name in ("model", "adapter") else [folder]
    return next((part for part in parts if (part / "versions.json").exists()), None)
