"""Several processes as one program: how they start, whose work is whose, and how all of them end.

The engine is `jax.distributed`. Every process runs the same program on the same values; what a host does with rows,
such as asking a reward function, each does for its own share. This is the only module that asks which process this is,
and with one process each of its functions does nothing but its work.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from pairgrpo_jax.core.bounds import Above, AtLeast, Settings

T = TypeVar("T")
_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_GRACE = 5  # seconds in which processes end by themselves once one has failed
_FAILED = "pairgrpo/failed"
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # statuses that no other process causes
_RESUME = "start all processes again with --resume to go on from the last checkpoint"


class PeerError(RuntimeError):
    """Another process failed; the message has its number and its own message."""


@dataclass(frozen=True)
class Start(Settings):
    """How a process finds the others; by default it is alone."""

    distributed: Literal["none", "auto"] = "none"
    """auto: as TPU pods, Slurm, Open MPI and Kubernetes say."""
    coordinator: str | None = None
    """HOST:PORT of process 0, the same for all, with --processes and --process."""
    processes: Annotated[int | None, AtLeast(1)] = None
    """How many there are."""
    process: Annotated[int | None, AtLeast(0)] = None
    """Which of them this is, from 0."""
    start_timeout: Annotated[float, Above(0)] = 300.0
    """Seconds to wait for the others."""

    def __post_init__(self):
        super().__post_init__()
        named = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        missing = [name for name, value in named.items() if value is None]
        if self.distributed == "auto" and len(missing) < len(named):
            given = ", ".join(f"--{name}" for name in named if name not in missing)
            raise ValueError(f"distributed: auto finds the other processes by itself; leave out {given}, or auto")
        if self.distributed == "none" and 0 < len(missing) < len(named):
            raise ValueError(f"{missing[0]}: --coordinator, --processes and --process go together")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"coordinator={self.coordinator!r}: expected HOST:PORT, such as 10.0.0.1:1234")
        if self.process is not None and self.processes is not None and self.process >= self.processes:
            raise ValueError(f"process={self.process}: of {self.processes} processes, 0 to {self.processes - 1}")

    @property
    def alone(self) -> bool:
        """Whether no other process is looked for."""
        return self.distributed == "none" and self.coordinator is None


def start(how: Start) -> None:
    """Joins the other processes, before anything is computed.

    jax ends a process that does not find the others with a stack trace, so a clock of our own rings before: after
    `start_timeout` the process ends with exit code 2 and a line that has the coordinator's address.

    Raises:
      ValueError: if "auto" finds no cluster.
    """
    if how.alone:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Programs that run side by side on a CPU may meet their collectives in another order in each process, and wait.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Signals are ours: `training.train` stops after the same iteration everywhere.
    jax.config.update("jax_enable_preemption_service", False)
    options: dict[str, Any] = {}
    if how.coordinator is not None:
        options = {"coordinator_address": how.coordinator, "num_processes": how.processes, "process_id": how.process}
        options["cluster_detection_method"] = "deactivate"
    options |= {"heartbeat_timeout_seconds": _HEARTBEAT, "initialization_timeout": int(how.start_timeout) + 60}
    clock = threading.Timer(how.start_timeout, _give_up_waiting, [how])
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        raise ValueError(
            f"distributed: no cluster is found here ({error}); "
            "start with --coordinator HOST:PORT --processes N --process I, or alone"
        ) from error
    finally:
        clock.cancel()
    _meet()
    threading.Thread(target=_end_with_the_others, name=_FAILED, daemon=True).start()
    if leads():
        print(f"{count()} processes, {jax.device_count()} devices ({jax.devices()[0].device_kind})", flush=True)


def _meet() -> None:
    """Opens the channels between all devices now: later gloo gives up when one process compiles 30 s longer."""
    mesh = Mesh(np.array(jax.devices()), ("all",))
    ones, one = np.ones(jax.device_count(), np.float32), NamedSharding(mesh, PartitionSpec())
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=one)(put(ones, NamedSharding(mesh, PartitionSpec("all")))))


def _give_up_waiting(how: Start) -> None:
    address = how.coordinator or _state().coordinator_address
    who = f"process {how.process} of {how.processes}" if how.process is not None else "this process"
    print(
        f"pairgrpo: error: coordinator: {who} did not meet the others at {address} within {how.start_timeout:g} s; "
        "process 0 must run and listen there, and all must be started",
        file=sys.stderr,
    )
    _end(2)


def _end_with_the_others() -> None:
    """Waits for word that a process has failed, then ends this one, which may wait for that one in a collective."""
    try:
        message = _state().client.blocking_key_value_get(_FAILED, 10**9)
    except Exception:  # this process is closing, or has lost the coordinator, of which jax tells
        return
    time.sleep(_GRACE)  # to end by itself, with a checkpoint, where all have met the same error
    print(f"pairgrpo: error: {message}", file=sys.stderr)
    _end(1)


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def leads() -> bool:
    """Whether this is the process that locks, logs and writes pages."""
    return jax.process_index() == 0


def share(rows: int) -> slice:
    """The rows that this process handles, of `rows` that are spread as evenly as they can be, in order."""
    ends = np.arange(count() + 1) * rows // count()
    return slice(*ends[jax.process_index() :][:2].tolist())


def put(x: Any, sharding: Sharding) -> jax.Array:
    """An array that all processes hold alike, on the devices of all; each gives what its own need."""
    placed = isinstance(x, jax.Array) and not x.is_fully_addressable
    if placed or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    return jax.make_array_from_process_local_data(sharding, whole, whole.shape)


def fetch(tree: Any) -> Any:
    """The arrays of a tree in host memory, whole in every process. All must call it."""

    def whole(x):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(whole(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def local(tree: Any) -> Any:
    """The arrays of a tree where each process can compute with them by itself. All must call it."""
    return tree if count() == 1 else jax.tree.map(jnp.asarray, fetch(tree))


def gather(value: Any) -> list[Any]:
    """A JSON-able value of each process, in their order. All must call it."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(text)] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(text[:n].tobytes()) for text, n in zip(texts, sizes)]


def join(tree: Any) -> Any:
    """Host arrays of the shares, joined along their leading axis, whole in every process. All must call it.

    Shares may differ in length, and arrays in nothing else.
    """
    if count() == 1:
        return tree
    leaves, shape = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    lengths = gather(len(leaves[0])) if leaves else []
    return jax.tree.unflatten(shape, [_joined(x, lengths) for x in leaves])


def _joined(x: np.ndarray, lengths: list[int]) -> np.ndarray:
    """As bytes, since a device may have no 64 bits."""
    x = np.ascontiguousarray(x)
    rows = x.reshape(len(x), math.prod(x.shape[1:]))
    data = np.zeros((max(lengths), rows.shape[1] * x.itemsize), np.uint8)
    data[: len(x)] = rows.view(np.uint8)
    parts = multihost_utils.process_allgather(data)
    whole = np.concatenate([part[:n] for part, n in zip(parts, lengths)])
    return whole.view(x.dtype).reshape(-1, *x.shape[1:])


def together(work: Callable[[], T]) -> T:
    """Does the work of this process; if that fails in any of them, it fails in all.

    Raises:
      PeerError: with the message of the first process that failed, in those that did not.
    """
    if count() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    told = gather(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for process, message in enumerate(told):
        if message is not None:
            raise PeerError(f"process {process}: {message}")
    return result  # type: ignore[return-value]


def on_lead(work: Callable[[], T]) -> T | None:
    """Does some work in the process that leads; None in the others, which wait for it and fail with it."""
    return together(lambda: work() if leads() else None)


def agree(what: Mapping[str, Any]) -> None:
    """Refuses processes that were started differently.

    Args:
      what: JSON-able values by name.

    Raises:
      ValueError: in all of them, that names each value which differs and the first process that has another.
    """
    everywhere = gather(dict(what))
    first = everywhere[0]
    for process, other in enumerate(everywhere):
        names = [name for name in sorted(other.keys() | first.keys()) if other.get(name) != first.get(name)]
        if names:
            told = (
                f"{name} is {first.get(name)!r} in process 0 and {other.get(name)!r} in {process}" for name in names
            )
            raise ValueError(f"processes must be started alike: {'; '.join(told)}")


def highest(number: int) -> int:
    """The largest of every process's number. All must call it."""
    return max(gather(number))


def all_here(where: str, seconds: float = _GRACE) -> bool:
    """Whether all processes come to the same place in time: after a failure, whether all have met it."""
    if count() == 1:
        return True
    try:
        _state().client.wait_at_barrier(f"pairgrpo/{where}", int(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        return False
    return True


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Tells the other processes of what ends this one within the context, so that none waits for it for ever.

    Raises:
      PeerError: in place of the error of a computation that another process has left.
    """
    try:
        yield
    except PeerError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if not _several():
            raise
        if _of_another(error):
            cause = _told(_GRACE / 2) or f"lost another process ({_first_line(error)})"
            raise PeerError(f"{cause}; {_RESUME}") from error
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # told already
            _state().client.key_value_set(_FAILED, f"process {jax.process_index()}: {_first_line(error)}; {_RESUME}")
        raise


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
    """Exits at the end: all at once, and after a failure without waiting for processes that may be gone."""
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if not _several():
            raise
    except Exception:
        if not _several():
            raise
        traceback.print_exc()
        code = 1
    if not _several():
        return
    if code in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM) and not _told(0):  # else one was aborted
        gather(code)
        jax.distributed.shutdown()
        for thread in threading.enumerate():  # a thread that still waits would abort the interpreter's end
            if thread.name == _FAILED:
                thread.join(_GRACE)
        sys.exit(code)
    all_here("leave")
    time.sleep(leads())  # the coordinator's end would end the others with a stack trace
    _end(code)


def _of_another(error: BaseException) -> bool:
    """Whether a computation ended because another process left it; memory that runs out is this one's own matter."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return not str(error).startswith(_OWN)
    return "Gloo" in str(error)


def _told(seconds: float) -> str | None:
    """What a process that failed left, if it comes in time."""
    try:
        return _state().client.blocking_key_value_get(_FAILED, int(1000 * seconds))
    except jax.errors.JaxRuntimeError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _several() -> bool:
    """Whether there are others, also before anything has started."""
    return jax.distributed.is_initialized() and count() > 1


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _state() -> Any:
    """jax's client of the coordination service, which has no public name."""
    from jax._src import distributed

    return distributed.global_state
