"""Which GGUF files make up a model, and their tensors together: one file, or parts `NAME-00001-of-0000N.gguf`."""

import re
from pathlib import Path

import numpy as np

from pairgrpo_jax.lm.files.gguf_file import GGUFFile

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


class GGUFModel:
    """Metadata of the first file and the tensors of all; tensors are dequantised when asked for."""

    def __init__(self, files: list[GGUFFile]):
        """Joins the parts of a model.

        Raises:
          ValueError: naming file and field, if the files are not the parts of one model, in order.
        """
        first = files[0]
        self.where, self.fields = first.where, first.fields
        self.homes: dict[str, GGUFFile] = {}
        for i, file in enumerate(files):
            _check_part(file, i, len(files))
            for name in file.tensors:
                if name in self.homes:
                    raise ValueError(f"{file.where}: tensor '{name}' is in {self.homes[name].where} too")
                self.homes[name] = file
        self.shapes = {name: file.shapes[name] for name, file in self.homes.items()}
        total = self.fields.get("split.tensors.count", len(self.homes))
        if total != len(self.homes):
            raise ValueError(f"{self.where}: field 'split.tensors.count' = {total!r}: found {len(self.homes)} tensors")

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as float32."""
        return self.homes[name].read(name)

    def __contains__(self, name: str) -> bool:
        return name in self.homes


def _check_part(file: GGUFFile, index: int, count: int) -> None:
    for name, default, expected in (("count", 1, count), ("no", 0, index)):
        value = file.fields.get(f"split.{name}", default)
        # llama.cpp numbers parts from 0, and writes a count of 0 or 1 into a whole file
        if value != expected and not (name == "count" and count == 1 and value == 0):
            why = f"expected {expected}; the parts of a model must keep the names NAME-00001-of-0000N.gguf"
            raise ValueError(f"{file.where}: field 'split.{name}' = {value!r}: {why}")


def find(path: Path) -> list[Path]:
    """Returns the files of the model at a path, in order; empty for a folder that holds no GGUF file.

    Args:
      path: a `.gguf` file, any part of a model, or a folder that holds one model.

    Raises:
      ValueError: naming the part that is missing, or the models among which a folder does not choose.
    """
    if path.is_dir():
        models = sorted({_parts(file)[0] for file in path.glob("*.[gG][gG][uU][fF]")})
        if len(models) > 1:
            raise ValueError(f"{path}: holds {len(models)} models; name the file of one: {', '.join(map(str, models))}")
        return find(models[0]) if models else []
    parts = _parts(path)
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise ValueError(f"{path}: of {len(parts)} parts, {len(missing)} are missing: {', '.join(missing[:20])}")
    return parts


def _parts(file: Path) -> list[Path]:
    """Returns the paths of all parts of the model that a file belongs to."""
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    name, number, count, suffix = match.groups()
    if not 1 <= int(number) <= int(count):
        raise ValueError(f"{file}: there is no part {int(number)} of {int(count)}")
    return [file.with_name(f"{name}-{i:05d}-of-{count}{suffix}") for i in range(1, int(count) + 1)]


def open_model(path: Path) -> GGUFModel | None:
    """Opens the GGUF model at a path, or returns None where weights, if any, are safetensors; see `find`."""
    if path.suffix.lower() != ".gguf" and any(path.glob("*.safetensors*")):
        return None
    files = find(path) if path.suffix.lower() == ".gguf" or path.is_dir() else []
    return GGUFModel([GGUFFile(file) for file in files]) if files else None
