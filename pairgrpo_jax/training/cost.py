"""What a program costs, read in its trace and in its compiled text; loops count as often as they run."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_BELOW = re.compile(r"compare\(.*%([\w.\-]+)\), direction=LT")


def matmul_flops(jaxpr: Any, while_trips: int = 1) -> float:
    """FLOPs of all products of matrices of a (closed) jaxpr, on all devices together.

    A scan counts as often as it runs, a `while` `while_trips` times, of branches the dearest one.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [matmul_flops(x, while_trips) for x in _inner(eqn)]
        name = eqn.primitive.name
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * {"scan": eqn.params.get("length"), "while": while_trips}.get(name, 1)
    return total


def _inner(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs; a kernel's own is not read."""
    if eqn.primitive.name in ("pallas_call", "custom_partitioning"):
        return

    def is_jaxpr(x: Any) -> bool:
        return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")

    yield from filter(is_jaxpr, jax.tree.leaves(tuple(eqn.params.values()), is_leaf=is_jaxpr))


def collectives(text: str, while_trips: int = 1) -> dict[str, tuple[int, int]]:
    """Kind -> (how often, bytes of the results on one device) of the text of a compiled program.

    One that a TPU runs piece by piece beside computations is in the text once a piece, with one channel.
    """
    own: dict[str, Counter] = defaultdict(Counter)
    size: dict[str, Counter] = defaultdict(Counter)
    calls: dict[str, Counter] = defaultdict(Counter)
    entry = name = ""
    channels: set[str] = set()
    limits: dict[str, int] = {}  # of computations that are conditions of loops from 0 on
    constants: dict[str, int] = {}
    for line in text.splitlines():
        if line.endswith("{") and (start := re.match(r"(ENTRY )?%?([\w.\-]+) ", line)):
            name = start[2]
            entry = name if start[1] else entry
            constants = {}
        if constant := _CONSTANT.search(line):
            constants[constant[1]] = int(constant[2])
        if (below := _BELOW.search(line)) and below[1] in constants:
            limits[name] = constants[below[1]]
        channel = _CHANNEL.search(line)
        if (found := _COLLECTIVE.search(line)) and not (channel and channel[1] in channels):
            channels |= {channel[1]} if channel else set()
            own[name][found[2]] += 1
            size[name][found[2]] += _bytes(found[1], halved=bool(found[3]))
        times = 1
        if looped := _CONDITION.search(line):
            trips = _TRIPS.search(line)
            times = int(trips[1]) if trips else limits.get(looped[1], while_trips)
        for called in _CALLED.findall(line) + [x.strip(" %") for y in _BRANCHES.findall(line) for x in y.split(",")]:
            calls[name][called] += times

    def total(computation: str, of: dict[str, Counter]) -> Counter:
        summed = Counter(of[computation])
        for called, times in list(calls[computation].items()):
            for kind, n in total(called, of).items():
                summed[kind] += times * n
        return summed

    counts, sizes = total(entry, own), total(entry, size)
    return {kind: (counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


def _bytes(shapes: str, halved: bool) -> int:
    """Of an HLO type; a tuple's parts are added up, and of an operation that starts one, half are its inputs."""
    total = 0
    for kind, dims in _SHAPE.findall(shapes):
        bits = int(re.search(r"\d+", kind)[0]) if kind != "pred" else 8  # pyright: ignore[reportOptionalSubscript]
        total += math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    return total // 2 if halved and shapes.startswith("(") else total


def bytes_of(x: Any, shape: tuple[int, ...] | None = None) -> int:
    """Of one array or abstract value, or of a part of it; a random key is 8, what has no shape nothing."""
    if not hasattr(x, "shape"):
        return 0
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 8 * math.prod(x.shape)
    count = math.prod(x.shape if shape is None else shape)
    return -(-count * jax.dtypes.itemsize_bits(x.dtype) // 8)  # two codes of 4 bits are a byte


def bytes_on_a_device(tree: Any) -> int:
    """Of arrays or abstract ones, each split as its sharding says."""

    def part(x: Any) -> tuple[int, ...] | None:
        return None if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)

    return sum(bytes_of(x, part(x)) for x in jax.tree.leaves(tree))
