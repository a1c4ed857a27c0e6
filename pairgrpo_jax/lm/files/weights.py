"""Moves parameters between checkpoints and the pytree, tensor by tensor, sharded or not."""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import flax.traverse_util
import jax
import numpy as np

from pairgrpo_jax.lm.models.names import Source

UNUSED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # buffers of old releases
HEAD = "lm_head.weight"
_ROWS = 4096  # read at once where two tensors are compared
_PREFIXES = ("model.", "transformer.")  # absent from checkpoints saved without their head


class Reader(Protocol):
    """A checkpoint: shapes by name, and blocks of tensors on demand."""

    @property
    def where(self) -> str:
        """The file or folder, for error messages."""
        ...

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        ...

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a block of a tensor."""
        ...


def has_own_head(reader: Reader, embed: str) -> bool:
    """Whether a checkpoint holds an `lm_head.weight` that is not its embedding, whose name is `embed`."""
    bare = embed
    for prefix in _PREFIXES:
        bare = bare.removeprefix(prefix)
    embed = embed if embed in reader.shapes else bare
    if not {HEAD, embed} <= reader.shapes.keys():
        return False
    rows, *rest = reader.shapes[HEAD]
    if reader.shapes[embed] != (rows, *rest):
        return True
    blocks = [(slice(i, min(i + _ROWS, rows)), *(slice(0, n) for n in rest)) for i in range(0, rows, _ROWS)]
    return not all(np.array_equal(reader.read(HEAD, block), reader.read(embed, block)) for block in blocks)


def load(
    reader: Reader,
    names: dict[str, Source],
    abstract: Any,
    shardings: Any = None,
    convert: Callable[[str, jax.Array], Any] = lambda path, x: x,
) -> Any:
    """Fills a parameter tree from a checkpoint, each device's part read on its own.

    Host memory beyond the parameters themselves never exceeds one device's part of the largest
    parameter and one stored tensor.

    Args:
      reader: the checkpoint.
      names: where each parameter is, `{}` in a name stands for the layer.
      abstract: tree of `jax.ShapeDtypeStruct`, the shapes and dtypes wanted.
      shardings: tree of shardings like `abstract`; None puts everything on the first device.
      convert: `(path, parameter) -> what is kept of it`, before the next one is read.

    Raises:
      ValueError: listing all missing, extra and misshapen tensors.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(abstract, sep="/")
    where = _match(reader, names, flat)
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places: dict[str, Any] = flax.traverse_util.flatten_dict(shardings, sep="/") if shardings else {}
    loaded = {}
    for path, leaf in flat.items():
        read: Any = functools.partial(_read_block, reader, names[path], where, path, leaf)
        place = places.get(path, local)
        loaded[path] = convert(path, jax.make_array_from_callback(leaf.shape, place, read))
        jax.block_until_ready(loaded[path])
    return flax.traverse_util.unflatten_dict(loaded, sep="/")


def _match(reader: Reader, names: dict[str, Source], flat: dict[str, Any]) -> dict[str, str]:
    """Returns the name in the checkpoint of every tensor wanted, or says all that is wrong."""
    wanted, where, problems = {}, {}, []
    for path, leaf in flat.items():
        stacked = "{}" in names[path].name
        shape = leaf.shape[1:] if stacked else leaf.shape
        for i in range(leaf.shape[0] if stacked else 1):
            wanted[names[path].name.format(i)] = names[path].stored_shape(shape)
    for name, shape in wanted.items():
        bare = name
        for prefix in _PREFIXES:
            bare = bare.removeprefix(prefix)
        stored = next((x for x in (name, bare) if x in reader.shapes), None)
        if stored is None:
            problems.append(f"missing {name}")
        elif reader.shapes[stored] != shape:
            problems.append(f"{stored} has shape {reader.shapes[stored]}, expected {shape}")
        else:
            where[name] = stored
    tied = () if any(path.startswith("lm_head") for path in flat) else (HEAD,)
    extra = reader.shapes.keys() - set(where.values()) - set(wanted)
    problems += [f"extra {x}" for x in sorted(extra) if not x.endswith((*UNUSED, *tied))]
    if problems:
        more = f" and {len(problems) - 40} more" if len(problems) > 40 else ""
        tie = '; is it the embedding? then set "tie_word_embeddings": true in config.json'
        hint = tie if problems == [f"missing {HEAD}"] else ""
        raise ValueError(f"{reader.where}: {'; '.join(problems[:40])}{more}{hint}")
    return where


def _read_block(
    reader: Reader, source: Source, where: dict[str, str], path: str, leaf: Any, index: tuple
) -> np.ndarray:
    """Returns one device's part of a parameter, layers stacked."""
    index = tuple(slice(*i.indices(n)[:2]) for i, n in zip(index, leaf.shape))
    if "{}" not in source.name:
        inner = source.stored_index(index)
        return source.take_block(reader.read(where[source.name], inner)).astype(leaf.dtype, copy=False)
    layers = range(index[0].start, index[0].stop)
    out = _aligned((len(layers), *(i.stop - i.start for i in index[1:])), leaf.dtype)
    inner = source.stored_index(index[1:])
    for row, layer in enumerate(layers):
        out[row] = source.take_block(reader.read(where[source.name.format(layer)], inner))
    return out


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an empty array that JAX takes over on CPU without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def stored_tensors(names: dict[str, Source], params: Any) -> dict[str, tuple[int, Callable[[], np.ndarray]]]:
    """Returns the tensors of a checkpoint as `name -> (bytes, function that makes it)`."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    blocks: dict[str, list] = {}
    for path, source in names.items():
        count = flat[path].shape[0] if "{}" in source.name else 1
        for i in range(count):
            leaf = (path, i) if "{}" in source.name else (path, None)
            blocks.setdefault(source.name.format(i), []).append((source, leaf))

    def make(entries: list) -> np.ndarray:
        entries = sorted(entries, key=lambda e: e[0].start)
        get = [flat[path] if i is None else flat[path][i] for _, (path, i) in entries]
        return entries[0][0].put([np.asarray(x) for x in get])

    def nbytes(entries: list) -> int:
        sizes = [(flat[path], i) for _, (path, i) in entries]
        return sum(x.nbytes if i is None else x.nbytes // x.shape[0] for x, i in sizes)

    return {name: (nbytes(e), functools.partial(make, e)) for name, e in blocks.items()}
