"""What the processor is: Linux tells its fields, Python a word of other systems'."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import jax

_ABOUT = Path("/proc/cpuinfo")


def fields(*names: str) -> dict[str, str]:
    """Returns those of the first core's fields that are named so, in the order of `names`; else one, `processor`."""
    first = _ABOUT.read_text().partition("\n\n")[0].splitlines() if _ABOUT.exists() else []
    pairs = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    return {name: pairs[name] for name in names if name in pairs} or {"processor": platform.processor()}


def label() -> str:
    """Returns its name, family and model, and how many of its cores this process may use: beside every time."""
    named = fields("model name", "cpu family", "model", "CPU part")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    family = f" family {named['cpu family']} model {named['model']}" if {"cpu family", "model"} <= set(named) else ""
    name = named.get("model name") or named.get("CPU part") or named.get("processor") or platform.machine()
    return f"{name}{family}, {cores} cores"


def require_bfloat16(setting: str) -> None:
    """Refuses bfloat16 on a processor that would compute it by float32, more slowly; accelerators multiply it.

    Raises:
      ValueError: naming the setting.
    """
    flags = fields("flags").get("flags")
    if jax.default_backend() == "cpu" and flags and not {"avx512_bf16", "amx_bf16"} & set(flags.split()):
        raise ValueError(f"{setting}: this processor does not multiply bfloat16 (avx512_bf16, amx_bf16); leave it out")
