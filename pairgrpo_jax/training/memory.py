"""What a program holds beside its arguments, estimated from its trace: which values are there at the same time.

A compiler decides that; this says it before one has run, and where none is at hand. Values that are computed
elementwise for one reader are taken to be fused into it, and products to be stored in the type they are next read in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import Literal, Var

from pairgrpo_jax.training.cost import bytes_of

_POINTWISE = frozenset(
    "add add_any sub mul div rem neg abs sign square sqrt rsqrt cbrt pow integer_pow exp exp2 expm1 log log1p tanh "
    "logistic erf sin cos max min floor ceil round clamp select_n eq ne lt le gt ge and or xor not is_finite "
    "shift_left shift_right_logical convert_element_type bitcast_convert_type stop_gradient copy".split()
)
_VIEWS = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims slice dynamic_slice split transpose rev pad concatenate iota name "
    "optimization_barrier reduce_precision platform_index".split()
)
_IN_PLACE = frozenset(("dynamic_update_slice", "scatter", "scatter-add"))
_LOOPS = frozenset(("scan", "while", "cond", "pallas_call"))


class _Op(NamedTuple):
    """An equation with its variables renamed, so that calls are unfolded."""

    eqn: Any
    inputs: list
    outputs: list

    @property
    def name(self) -> str:
        return self.eqn.primitive.name


def live_bytes(jaxpr: Any, *, kernels: bool = False) -> int:
    """The most bytes that a (closed) jaxpr holds at once beside its arguments and results.

    Args:
      jaxpr: of one device's part.
      kernels: where there is a choice by platform, its own kernels run (a TPU's), which hold no scores.
    """
    return _peak(getattr(jaxpr, "jaxpr", jaxpr), (), kernels, whole=True)


def _peak(jaxpr: Any, made: Sequence[Var], kernels: bool, whole: bool = False) -> int:
    """`made`: arguments that are buffers of their own, as a loop's slices are; `whole`: results are not counted."""
    ops, outs = _unfolded(jaxpr)
    ops = _needed(ops, outs)
    reads = Counter(v for op in ops for v in {x for x in op.inputs if isinstance(x, Var)})
    reader = {v: op for op in ops for v in op.inputs if isinstance(v, Var) and reads[v] == 1}
    held: dict[Var, frozenset] = {v: frozenset([v]) for v in made}
    size = {v: _stored(v, reader) for v in made}
    first, last = dict.fromkeys(made, 0), dict.fromkeys(made, 0)
    inside = [0] * len(ops)
    for i, op in enumerate(ops):
        used = frozenset().union(*(held.get(v, frozenset()) for v in op.inputs if isinstance(v, Var)))
        last.update(dict.fromkeys(used, i))
        fused = op.name in _VIEWS or (op.name in _POINTWISE and (reads[op.outputs[0]] < 2 or not used))
        if fused or (op.name in _IN_PLACE and used):
            held.update(dict.fromkeys(op.outputs, used))
            continue
        for v in op.outputs:
            size[v], held[v], first[v], last[v] = _stored(v, reader), frozenset([v]), i, i
        inside[i] = max((_peak(body, slices, kernels) for body, slices in _bodies(op.eqn, kernels)), default=0)
    for v in outs:
        behind = held.get(v, frozenset()) if isinstance(v, Var) else frozenset()
        last.update(dict.fromkeys(behind, len(ops)))
        if whole and len(behind) == 1:  # a result, or seen as one
            size.update(dict.fromkeys(behind, 0))
    change = Counter()
    for v in size:
        change[first[v]] += size[v]
        change[last[v] + 1] -= size[v]
    live, most = 0, 0
    for i in range(len(ops)):
        live += change[i]
        most = max(most, live + inside[i])
    return most


def _unfolded(jaxpr: Any) -> tuple[list[_Op], list]:
    ops: list[_Op] = []

    def walk(jaxpr: Any, names: dict) -> list:
        def now(v: Any) -> Any:
            return v if isinstance(v, Literal) else names.get(v, v)

        for eqn in jaxpr.eqns:
            body = None if eqn.primitive.name in _LOOPS else _called(eqn)
            if body is not None:
                inputs = [now(v) for v in eqn.invars]
                names.update(zip(eqn.outvars, walk(body, dict(zip(body.invars, inputs)))))
            else:
                fresh = [Var(v.aval) for v in eqn.outvars]  # the same jaxpr may be called twice
                ops.append(_Op(eqn, [now(v) for v in eqn.invars], fresh))
                names.update(zip(eqn.outvars, fresh))
        return [now(v) for v in jaxpr.outvars]

    return ops, walk(jaxpr, {})


def _called(eqn: Any) -> Any:
    found = next((eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params), None)
    return getattr(found, "jaxpr", found)


def _needed(ops: list[_Op], outs: list) -> list[_Op]:
    """Without what no result depends on."""
    wanted, kept = {v for v in outs if isinstance(v, Var)}, []
    for op in reversed(ops):
        if wanted.intersection(op.outputs):
            kept.append(op)
            wanted.update(v for v in op.inputs if isinstance(v, Var))
    return kept[::-1]


def _stored(v: Var, reader: dict) -> int:
    """Bytes of a value, which is converted where it is made if nothing else reads it."""
    least, elements = bytes_of(v.aval), math.prod(getattr(v.aval, "shape", ()))
    while (op := reader.get(v)) is not None and op.name in _POINTWISE | _VIEWS and len(op.outputs) == 1:
        v = op.outputs[0]
        if math.prod(v.aval.shape) != elements:
            break
        least = min(least, bytes_of(v.aval))
    return least


def _bodies(eqn: Any, kernels: bool) -> list[tuple[Any, Sequence[Var]]]:
    """What an equation runs, each with the arguments that are made for it."""
    name = eqn.primitive.name
    if name == "scan":
        body = eqn.params["jaxpr"].jaxpr  # its arguments are the loop's, but for slices, which lose an axis
        slices = [v for whole, v in zip(eqn.invars, body.invars) if v.aval.shape != whole.aval.shape]
        return [(body, slices)]
    if name == "while":
        return [(eqn.params["body_jaxpr"].jaxpr, ())]
    if name == "cond":
        branches = [branch.jaxpr for branch in eqn.params["branches"]]
        own = [branch for branch in branches if ("pallas_call" in str(branch)) == kernels]
        return [(branch, ()) for branch in own or branches]
    return []
