"""Reads and writes safetensors checkpoints: one file, or shards with an index."""

import json
import re
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pairgrpo_jax.lm.files.text_files import read_json
from pairgrpo_jax.lm.files.weights import UNUSED

_INDEX = "model.safetensors.index.json"
_OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_DTYPES = {"F64", "F32", "F16", "BF16"}


class SafetensorsReader:
    """The tensors of a checkpoint folder; only headers are read until a tensor is asked for."""

    def __init__(self, folder: Path):
        """Reads the headers.

        Raises:
          ValueError: naming the file, if it is missing, malformed or not what the index says.
        """
        self.where = str(folder)
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path, expected in _files(folder).items():
            self._read_header(path, expected)

    def _read_header(self, path: Path, expected: set[str] | None) -> None:
        try:
            with safe_open(path, "numpy") as f:
                names = set(f.keys())
                slices = {name: f.get_slice(name) for name in names}
                kinds = {name: s.get_dtype() for name, s in slices.items()}
                shapes = {name: tuple(s.get_shape()) for name, s in slices.items()}
        except (SafetensorError, OSError, UnicodeError) as e:
            raise ValueError(f"{path}: not a readable safetensors file: {e}") from e
        if expected is not None and expected != names:
            differ = ", ".join(sorted(expected ^ names)[:20])
            raise ValueError(f"{path}: tensors differ from those in {_INDEX}: {differ}")
        read = {name: kind for name, kind in kinds.items() if not name.endswith(UNUSED)}
        odd = sorted(f"{name} ({kind})" for name, kind in read.items() if kind not in _DTYPES)
        if odd:
            allowed = ", ".join(sorted(_DTYPES))
            raise ValueError(f"{path}: dtypes other than {allowed}: {', '.join(odd[:20])}")
        twice = names & self.files.keys()
        if twice:
            raise ValueError(f"{path}: already in another shard: {', '.join(sorted(twice)[:20])}")
        self.files.update(dict.fromkeys(names, path))
        self.shapes.update(shapes)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a block of a tensor. The file is mapped only meanwhile, so memory stays low."""
        try:
            with safe_open(self.files[name], "numpy") as f:
                return np.asarray(f.get_slice(name)[index])
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{self.files[name]}: cannot read tensor '{name}': {e}") from e


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the weight files and, where there is an index, the tensors each must hold."""
    index, single = folder / _INDEX, folder / "model.safetensors"
    if single.exists():  # beside an index too, as in transformers
        return {single: None}
    if not index.exists():
        raise ValueError(f"{folder}: no model.safetensors, no {_INDEX} and no .gguf file{_other_weights(folder)}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index}: field 'weight_map' must map tensor names to files")
    files: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{index}: field 'weight_map': {name}: not a file name: {file!r}")
        files[folder / file] = (files.get(folder / file) or set()) | {name}
    return files


def _other_weights(folder: Path) -> str:
    """What a folder without weights that are read here holds in their place, and what to do about it."""
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if shards:
        return f"; there is {', '.join(shards[:8])}: shards need their index, a single file the name model.safetensors"
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        how = "transformers' save_pretrained writes safetensors"
        return f"; there is {', '.join(pickled[:8])}: pickled weights are never loaded, convert them ({how})"
    return ""


def write(folder: Path, tensors: dict, max_bytes: int) -> None:
    """Writes tensors (callables that return them), in shards of at most `max_bytes` each.

    A single tensor larger than that gets a file of its own. Only one shard is in memory.

    Args:
      folder: an existing folder.
      tensors: name to `(bytes, function that returns the array)`.
      max_bytes: of a file.
    """
    shards: list[dict] = [{}]
    size = 0
    for name, (nbytes, make) in tensors.items():
        if shards[-1] and size + nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = make
        size += nbytes
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = ["model.safetensors"] if count == 1 else names
    for file, shard in zip(names, shards):
        arrays = {name: np.ascontiguousarray(make()) for name, make in shard.items()}  # views come out scrambled
        save_file(arrays, folder / file, metadata={"format": "pt"})
    before = (path.name for path in folder.glob("model*.safetensors") if _OURS.fullmatch(path.name))
    for stale in {*before, _INDEX} - {*names}:
        (folder / stale).unlink(missing_ok=True)  # of a model saved here before
    if count > 1:
        weight_map = {name: file for file, shard in zip(names, shards) for name in shard}
        total = sum(nbytes for nbytes, _ in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2))
