"""Will it fit, and what does it cost: `pairgrpo plan align METHOD --model FOLDER_OR_CONFIG --topology v5e:2x4 ...`.

Compiles the run's own update, prefill and decode for a slice of machines that need not be here, and prints the memory
of each, its collectives, its FLOPs and a lower bound of its seconds. Takes the options of `pairgrpo align` that change
these programs; of the model a `config.json` is enough. Exit code 1: it does not fit.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pairgrpo_jax.commands.align_settings import LABELS, Run, preset
from pairgrpo_jax.commands.cli import parse_run
from pairgrpo_jax.commands.spelled import leaves
from pairgrpo_jax.commands.topologies import Topology, known, open_topology
from pairgrpo_jax.commands.words import peek, take
from pairgrpo_jax.lm.alignment import Placement
from pairgrpo_jax.lm.alignment.programs import Program, programs
from pairgrpo_jax.lm.files import gguf_model
from pairgrpo_jax.lm.files.checkpoint import open_model, resolve
from pairgrpo_jax.lm.files.text_files import read_json
from pairgrpo_jax.lm.models.model import Model, read_config
from pairgrpo_jax.lm.models.params import abstract_params
from pairgrpo_jax.training.cost import bytes_of, bytes_on_a_device, collectives, matmul_flops
from pairgrpo_jax.training.memory import live_bytes

_GIB = 2**30
_HEAD = "| program | arguments | outputs | temporaries | beside | total GiB | estimate | TFLOP | seconds, at least "
_HEAD += "| collectives |"
_READ = ("model", "ignore_fields", "data", "reward", "iterations", "dtype", "operands", "remat", "mesh", "resume")
_WHOLE = "prefill and decode below are those of a whole batch at once; with slots they hold less"


class Cost(NamedTuple):
    """Of one program on one device: bytes (None: not compiled), FLOPs of all devices, collectives by kind.

    `estimate` are bytes of outputs and temporaries as the trace of one device's part has them.
    """

    name: str
    arguments: int
    beside: int
    outputs: int | None
    temporaries: int | None
    flops: float
    steps: int
    collectives: dict[str, tuple[int, int]]
    estimate: int

    @property
    def total(self) -> int:
        """All bytes that are held at once."""
        return self.arguments + self.beside + (self.outputs or 0) + (self.temporaries or 0)


def main(words: Sequence[str]) -> int:
    """Parses the command line, compiles, and prints the table."""
    if words[:1] != ["align"]:
        asked = list(words[:1]) in ([], ["-h"], ["--help"])
        usage = "usage: pairgrpo plan align METHOD --model FOLDER_OR_CONFIG --topology NAME [options of align]"
        usage += f"\nNAME: {known()}"
        print(usage, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    name, (_, rest) = peek(words, "topology", ""), take(words[1:], ("--topology",))
    run = parse_run(rest, LABELS, preset, "pairgrpo plan align")
    require_read(run, rest)
    if not name:
        raise ValueError(f"topology: name one: {known()}")
    topology = open_topology(name)
    if topology.devices > 1 and run.mesh == "none":
        if peek(rest, "mesh", ""):
            raise ValueError(f"mesh='none' uses one of the {topology.devices} devices; choose data or fsdp")
        run = run.replace(mesh="fsdp")
    return report(run, name, topology)


def require_read(run: Run, words: Sequence[str]) -> None:
    """Refuses options that change nothing here; ValueError that names the first. With --resume, --output is read."""
    idle = leaves(run).keys() - leaves(run.config).keys() - {*_READ} - ({"output"} if "--resume" in words else set())
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option[2:].replace("-", "_").removeprefix("no_") in idle:
            raise ValueError(f"{option} has no effect on a plan; leave it out")


def model_of(run: Run) -> Model:
    """The model without parameters, from the config alone."""
    path = Path(run.model)
    if path.suffix == ".json":
        fields, where = read_json(path), str(path)
    else:
        path = resolve(run.model)
        file = open_model(path)
        where = str(path / "config.json") if file is None else file.where
        fields = read_json(path / "config.json") if file is None else gguf_model.read_config(file, run.ignore_fields)
    config = read_config(fields, where, run.ignore_fields)
    return Model(config, None, dtype=jnp.dtype(run.dtype), operands=run.operands, remat=run.remat)


def report(run: Run, name: str, topology: Topology) -> int:
    """Prints a line for each program; the exit code, 1 where one does not fit."""
    placement = Placement(topology.mesh and Mesh(topology.mesh.devices, ("fsdp" if run.mesh == "fsdp" else "data",)))
    chip = topology.chip
    memory = chip.gib * _GIB if chip else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / topology.devices
    about = f"{run.label}, {run.model}, {run.dtype}, mesh {run.mesh}, on {name}: {topology.devices} devices"
    whole = _WHOLE if run.config.samples is not None and run.config.samples.slots else ""
    print("\n".join(filter(None, (about, placement.told(run.config), whole))), end="\n\n", flush=True)
    print(f"{_HEAD}\n|{'---|' * _HEAD.count(' | ')}---|", flush=True)
    fits, start = True, time.perf_counter()
    model = model_of(run)
    copy = narrowed(model, placement) if run.config.adapters.quantize == "none" else 0
    for program, part in with_parts(run, model, placement):
        estimate = estimated(part, topology.platform) + (copy if program.name != "prefill" else 0)
        cost = cost_of(program, estimate, topology)
        print(line(cost, topology), flush=True)
        fits &= cost.total <= memory
    print(f"\ncompiled in {time.perf_counter() - start:.0f} s; memory is GiB on one device")
    if topology.platform == "cuda":
        print("lowered only: the card's own compiler decides; total is without outputs and temporaries, estimate with")
        return 0
    where = f"rates and memory of {chip.source}" if chip else "this machine's memory"
    print(f"{'fits' if fits else 'DOES NOT FIT'} in {memory / _GIB:.1f} GiB a device ({where})")
    return 0 if fits else 1


def with_parts(run: Run, model: Model, placement: Placement) -> Iterator[tuple[Program, Program]]:
    """Each program of a run, and that of one device's part of a batch: what it computes, and gathers for that."""
    mesh, config = placement.mesh, run.config
    whole = programs(config, model, placement, run.iterations)
    if mesh is None:
        return ((program, program) for program in whole)
    rows = placement.update_places(config) // placement.splits
    rows = max(rows, 2) if config.method.mismatched else rows  # alone, it needs another prompt's replies
    alone = Placement(Mesh(mesh.devices.flat[:1], mesh.axis_names))
    part = config.replace(prompts=rows * config.optimizer.minibatches)
    return zip(whole, programs(part, model, alone, run.iterations), strict=True)


def narrowed(model: Model, placement: Placement) -> int:
    """Bytes on a device of parameters in the activations' type, where that is narrower: a copy that is kept."""
    if jnp.dtype(model.dtype).itemsize >= 4 or model.operands is not None:
        return 0
    return bytes_on_a_device(placement.abstract(abstract_params(model.config, model.dtype)))


def estimated(program: Program, platform: str) -> int:
    """Bytes of new outputs and of temporaries, from the trace alone."""
    traced = program.traced
    taken = sum(bytes_of(x) for x in jax.tree.leaves(traced.args_info) if x.donated)
    made = sum(bytes_of(x) for x in jax.tree.leaves(traced.out_info))
    return max(made - taken, 0) + live_bytes(traced.jaxpr, kernels=platform == "tpu")


def cost_of(program: Program, estimate: int, topology: Topology) -> Cost:
    """Compiles a program and reads what it takes."""
    traced = program.traced
    flops = matmul_flops(traced.jaxpr, program.steps)
    arguments, beside = (bytes_on_a_device(tree) for tree in (_arguments(traced), program.beside))
    lowered = traced.lower(lowering_platforms=(topology.platform,))
    if topology.platform == "cuda":
        return Cost(program.name, arguments, beside, None, None, flops, program.steps, {}, estimate)
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = collectives(compiled.as_text(), program.steps)
    held = memory.argument_size_in_bytes, beside, new, memory.temp_size_in_bytes
    return Cost(program.name, *held, flops, program.steps, found, estimate)


def _arguments(traced: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced.args_info)


def line(cost: Cost, topology: Topology) -> str:
    """A row of the table. A loop over tokens reads its arguments once a token."""
    chip = topology.chip
    sizes = [cost.arguments, cost.outputs, cost.temporaries, cost.beside, cost.total]
    sizes.append(cost.arguments + cost.beside + cost.estimate)
    parts = ["-" if x is None else f"{x / _GIB:.2f}" for x in sizes] + [f"{cost.flops / 1e12:.3g}"]
    if chip:
        by_products = cost.flops / topology.devices / chip.tflops / 1e12
        parts.append(f"{max(by_products, cost.steps * cost.arguments / chip.gb_per_second / 1e9):.2g}")
    else:
        parts.append("-")
    moved = [f"{n} {kind} {size / _GIB:.2f} GiB" for kind, (n, size) in cost.collectives.items()]
    return f"| {cost.name} | {' | '.join(parts)} | {', '.join(moved) or '-'} |"
