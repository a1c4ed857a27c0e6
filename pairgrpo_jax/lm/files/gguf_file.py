"""Reads GGUF files: a header parser that believes no size in the file, and dequantisation.

The reader of the `gguf` package loops as long as a lying header tells it to, so the header is
parsed here with every size checked against the file; block types and `dequantize` are `gguf`'s.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


class TensorInfo(NamedTuple):
    """Where a tensor is in the file; `shape` is numpy's (slowest axis first)."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


class _Cursor:
    """Reads forward in a buffer and refuses to leave it."""

    def __init__(self, data: Any, size: int, where: str):
        self.data, self.size, self.where, self.at = data, size, where, 0

    def skip(self, count: int, what: str) -> int:
        """Moves on by `count` bytes and returns where it was."""
        if count > self.size - self.at:
            left = self.size - self.at
            raise ValueError(f"{self.where}: {what}: needs {count} bytes, {left} are left")
        self.at += count
        return self.at - count

    def scalar(self, form: str, what: str) -> Any:
        """Reads one number."""
        return struct.unpack_from(form, self.data, self.skip(struct.calcsize(form), what))[0]

    def text(self, what: str) -> str:
        """Reads a string."""
        length = self.scalar("<Q", what)
        start = self.skip(length, what)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as e:
            raise ValueError(f"{self.where}: {what}: not UTF-8") from e

    def value(self, what: str) -> Any:
        """Reads a typed metadata value; arrays of numbers come back as lists."""
        kind = self.scalar("<I", what)
        if kind == _STRING:
            return self.text(what)
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind != _ARRAY:
            raise ValueError(f"{self.where}: {what}: unknown value type {kind}")
        kind, count = self.scalar("<I", what), self.scalar("<Q", what)
        if kind == _STRING:
            if count > (self.size - self.at) // 8:
                raise ValueError(f"{self.where}: {what}: {count} strings do not fit in the file")
            return [self.text(what) for _ in range(count)]
        if kind not in _SCALARS:
            raise ValueError(f"{self.where}: {what}: unsupported array of type {kind}")
        width = struct.calcsize(_SCALARS[kind])
        start = self.skip(count * width, what)
        return list(struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self.data, start))


class GGUFFile:
    """Metadata and tensors of a GGUF file; tensors are dequantised when asked for."""

    def __init__(self, path: Path):
        """Reads the header.

        Raises:
          ValueError: naming file and field, if anything in it is malformed or does not fit.
        """
        self.where = str(path)
        try:
            with open(path, "rb") as f:
                self.data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise ValueError(f"{path}: cannot read: {e}") from e
        cursor = _Cursor(self.data, len(self.data), self.where)
        if self.data[: min(4, len(self.data))] != b"GGUF":
            raise ValueError(f"{path}: bad magic, not a GGUF file")
        cursor.skip(4, "magic")
        version = cursor.scalar("<I", "version")
        if version in (2 << 24, 3 << 24):
            raise ValueError(f"{path}: a big-endian GGUF file; convert it: gguf-convert-endian {path} little")
        if version not in (2, 3):
            raise ValueError(f"{path}: version {version} is not supported (2 and 3 are)")
        tensor_count, field_count = (cursor.scalar("<Q", x) for x in ("tensors", "fields"))
        self.fields = _read_fields(cursor, field_count)
        self.tensors = self._read_tensors(cursor, tensor_count)
        self.shapes = {name: info.shape for name, info in self.tensors.items()}

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, TensorInfo]:
        if count > (cursor.size - cursor.at) // 24:
            raise ValueError(f"{self.where}: tensor count {count} does not fit in the file")
        found = {}
        for i in range(count):
            name = cursor.text(f"name of tensor {i}")
            if name in found:
                raise ValueError(f"{self.where}: tensor '{name}' appears twice")
            found[name] = _read_tensor(cursor, f"tensor '{name}'")
        align = self.fields.get("general.alignment", 32)
        if type(align) is not int or align < 1 or align & (align - 1):
            raise ValueError(f"{self.where}: field 'general.alignment': not a power of two")
        start = -(-cursor.at // align) * align
        for name, info in found.items():
            if info.offset % align or start + info.offset + info.nbytes > cursor.size:
                raise ValueError(f"{self.where}: tensor '{name}': data outside the file")
            found[name] = info._replace(offset=start + info.offset)
        return found

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32."""
        info = self.tensors[name]
        kind = info.kind.name
        if kind in _PLAIN:
            count = math.prod(info.shape)
            flat = np.frombuffer(self.data, _PLAIN[kind], count, info.offset)
            return flat.reshape(info.shape).astype(np.float32)
        raw = np.frombuffer(self.data, np.uint8, info.nbytes, info.offset)
        try:
            return dequantize(raw, info.kind).reshape(info.shape)
        except (NotImplementedError, IndexError, ValueError) as e:
            raise ValueError(f"{self.where}: tensor '{name}': type {kind}: {e}") from e

    def __contains__(self, name: str) -> bool:
        return name in self.tensors


def _read_fields(cursor: _Cursor, count: int) -> dict[str, Any]:
    if count > (cursor.size - cursor.at) // 12:
        raise ValueError(f"{cursor.where}: field count {count} does not fit in the file")
    fields: dict[str, Any] = {}
    for i in range(count):
        key = cursor.text(f"name of field {i}")
        if key in fields:
            raise ValueError(f"{cursor.where}: field '{key}' appears twice")
        fields[key] = cursor.value(f"field '{key}'")
    return fields


def _read_tensor(cursor: _Cursor, what: str) -> TensorInfo:
    rank = cursor.scalar("<I", what)
    if not 1 <= rank <= 4:
        raise ValueError(f"{cursor.where}: {what}: {rank} dimensions")
    shape = tuple(cursor.scalar("<Q", what) for _ in range(rank))[::-1]
    number, offset = cursor.scalar("<I", what), cursor.scalar("<Q", what)
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as e:
        raise ValueError(f"{cursor.where}: {what}: unknown type {number}") from e
    block, width = gguf.GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % block:
        raise ValueError(f"{cursor.where}: {what}: shape {shape} is not in blocks of {block}")
    return TensorInfo(shape, kind, offset, math.prod(shape) // block * width)
