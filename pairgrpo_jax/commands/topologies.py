"""Slices of machines by name: their devices, which need not be here, and what a chip can do at best."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pairgrpo_jax.core.checks import did_you_mean


class Chip(NamedTuple):
    """Memory, peak rates (bfloat16 products, memory) and the page that they are from."""

    gib: float
    tflops: float
    gb_per_second: float
    source: str


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_PAGE = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    "v4": Chip(32, 275, 1228, _PAGE + "v4"),
    "v5e": Chip(16, 197, 819, _PAGE + "v5e"),
    "v5p": Chip(95, 459, 2765, _PAGE + "v5p"),
    "v6e": Chip(32, 918, 1640, _PAGE + "v6e"),
}
SHAPES = {"v4": _CUBE, "v5e": _FLAT, "v5p": _CUBE, "v6e": _FLAT}
_TYPES = {"v4": ("v4-", 2), "v5e": ("v5litepod-", 1), "v5p": ("v5p-", 2), "v6e": ("v6e-", 1)}


class Topology(NamedTuple):
    """A slice: its mesh, None for one device of the default kind; the platform; and its chip, where rates are known."""

    mesh: Mesh | None
    platform: str
    chip: Chip | None
    devices: int


def known() -> str:
    """The names that `open_topology` takes."""
    slices = "; ".join(f"{kind}:{', '.join(shapes)}" for kind, shapes in SHAPES.items())
    return f"cpu:N, cuda, or a slice of TPUs, {slices}"


def open_topology(name: str) -> Topology:
    """The devices of a slice: `v5e:2x4`, `cpu:8`, or `cuda`, whose programs are lowered but not compiled.

    Raises:
      ValueError: for a name that is none of these; where libtpu, which has the compiler, is missing; for more CPU
        devices than a process that has started already can have.
    """
    kind, _, shape = name.partition(":")
    if name == "cuda":
        return Topology(None, "cuda", None, 1)
    if kind == "cpu" and shape.isdecimal() and int(shape) > 0:
        return _cpus(int(shape))
    names = [f"{kind}:{shape}" for kind, shapes in SHAPES.items() for shape in shapes]
    if name not in names:
        raise ValueError(f"topology {name!r} is unknown; {did_you_mean(name, names, 'choose one of these')}: {known()}")
    devices = _tpus(name, *_TYPES[kind])
    return Topology(_mesh(devices), "tpu", CHIPS[kind], len(devices))


def _mesh(devices: list[Any]) -> Mesh:
    return Mesh(np.array(devices), ("fsdp",))


def _cpus(count: int) -> Topology:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # devices are counted once, when the first is asked for
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        how = f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        raise ValueError(f"topology: this process has {len(devices)} CPU devices, not {count}; set {how}")
    return Topology(_mesh(devices[:count]) if count > 1 else None, "cpu", None, count)


def _tpus(name: str, accelerator: str, cores: int) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None and not os.path.exists(os.environ.get("TPU_LIBRARY_PATH", "")):
        raise ValueError(
            f"topology: {name} needs the TPU's compiler, which runs on any machine: pip install 'pairgrpo-jax[tpu]', "
            "or set TPU_LIBRARY_PATH to a libtpu.so"
        )
    chips = math.prod(map(int, name.partition(":")[2].split("x")))
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{accelerator}{chips * cores}",
    }.items():
        os.environ.setdefault(key, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what it keeps of a machine elsewhere it cannot read
    from jax.experimental import topologies

    how: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}  # or a host has more chips
    if cores > 1:
        how["chip_config_name"] = "megacore"  # a chip is one device, as in a run; by default each core of a v4 is one
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **how).devices)
