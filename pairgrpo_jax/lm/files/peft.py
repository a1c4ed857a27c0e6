"""LoRA adapters in the format of PEFT: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pairgrpo_jax.lm.files.text_files import read_json
from pairgrpo_jax.lm.models import lora as lora_lib
from pairgrpo_jax.lm.models.config import FieldReader, ModelConfig
from pairgrpo_jax.lm.models.lora import LoraConfig
from pairgrpo_jax.lm.models.model import FAMILIES
from pairgrpo_jax.lm.models.names import Source

CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Of an adapted output layer PEFT stores the frozen weight too, as `base_layer`.
_NAME = re.compile(r"base_model\.model\.(.+)\.(?:lora_([AB])|base_layer)\.weight")
# Initial values that leave the base as it is; others (PiSSA, OLoRA, CorDA, LoftQ) store what is left of it.
_INITS = (True, False, "gaussian", "orthogonal", "eva")
_LONGEST = 200  # characters of a pattern of layers' names
_MOST = 1e300
_NOTES = """auto_mapping peft_version revision inference_mode megatron_core fan_in_fan_out target_modules
    exclude_modules layers_to_transform layers_pattern qalora_group_size runtime_config eva_config
    base_model_name_or_path""".split()


class _Part(NamedTuple):
    """A kernel of ours inside a stored linear layer."""

    path: str
    layer: int | None
    source: Source
    shape: tuple[int, ...]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters and no model."""
    return (folder / CONFIG).exists() and not any(folder.glob("model*.safetensors"))


def base_of(folder: Path) -> str:
    """The model that the adapters of a folder go on; ValueError if its config names none."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / CONFIG}: field 'base_model_name_or_path' = {name!r}: name the model they go on")
    return name


def _modules(config: ModelConfig) -> dict[str, list[_Part]]:
    """The linear layers of a checkpoint by name, and which of our kernels each holds."""
    found: dict[str, list[_Part]] = {}
    names = FAMILIES[config.family].tensor_names(config)
    for path, shape in lora_lib.kernels(config).items():
        source = names["/".join((*path, "kernel"))]
        for layer in range(shape[0]) if "{}" in source.name else (None,):
            module = source.name.format(layer).removesuffix(".weight")
            found.setdefault(module, []).append(_Part("/".join(path), layer, source, shape[-2:]))
    return found


def save_peft(folder: str | Path, config: ModelConfig, lora: LoraConfig, adapters: Any, *, base: str) -> None:
    """Writes adapters so that PEFT loads them with equal logits.

    Kernels that are one layer in the checkpoint (GPT-2's `c_attn`, Phi-3's `qkv_proj`) become one adapter of the sum of
    their ranks.

    Args:
      folder: made if it does not exist.
      config: of the model they go on.
      lora: what they are.
      adapters: see `lora.init`.
      base: the model they go on, a hub id or a folder, for the reader.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(jax.device_get(adapters), sep="/")
    tensors, ranks, left_out = {}, {}, set()
    for module, parts in _modules(config).items():
        ours = [part for part in parts if f"{part.path}/a" in flat]
        if ours:
            a, b = _fused(ours, flat)
            tensors |= {f"base_model.model.{module}.lora_{x}.weight": w for x, w in (("A", a), ("B", b))}
            ranks[module] = len(a)
        else:
            left_out.add(module)
    names = {module: _short(module, left_out) for module in ranks}
    wide = {names[module]: rank for module, rank in ranks.items() if rank != lora.rank}
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(set(names.values())),
        "rank_pattern": wide,
        "alpha_pattern": {name: lora.alpha / lora.rank * rank for name, rank in wide.items()},
        "fan_in_fan_out": config.family == "gpt2",
        "bias": "none",
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(fields, indent=2))


def _fused(parts: list[_Part], flat: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A `[R, in]` and B `[out, R]` of one stored layer; each part has rows of A and a block of B for itself."""
    pairs = [
        [
            np.asarray(flat[f"{part.path}/{x}"] if part.layer is None else flat[f"{part.path}/{x}"][part.layer])
            for x in "ab"
        ]
        for part in parts
    ]
    rank = pairs[0][0].shape[-1]
    out = np.zeros((parts[0].source.total or parts[0].shape[1], rank * len(parts)), pairs[0][1].dtype)
    for i, (part, (_, b)) in enumerate(zip(parts, pairs)):
        out[part.source.start : part.source.start + part.shape[1], i * rank : (i + 1) * rank] = b.T
    return np.ascontiguousarray(np.concatenate([a for a, _ in pairs], axis=-1).T), out


def _short(module: str, others: set[str]) -> str:
    """The last words of a layer's name: as few as no other layer that is not adapted ends with."""
    words = module.split(".")
    for count in range(1, len(words)):
        name = ".".join(words[-count:])
        if not any(other == name or other.endswith(f".{name}") for other in others):
            return name
    return module


def load_peft(folder: str | Path, config: ModelConfig, *, ignore_fields: Iterable[str] = ()) -> tuple[LoraConfig, Any]:
    """Reads adapters that PEFT wrote, or `save_peft`.

    Ranks and scales that differ between layers are read as one: smaller adapters are filled up with zeros, and scales
    multiplied into B. Layers without an adapter, where others of their kind have one, get zeros.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      config: of the model they go on.
      ignore_fields: fields of their config to accept without implementing them.

    Returns:
      What they are, and the adapters, see `lora.init`.

    Raises:
      ValueError: naming the file and the field or tensor, for what is not plain LoRA (DoRA, PiSSA, OLoRA, modules saved
        whole, biases), malformed, or of another model.
    """
    folder = Path(folder)
    reader = _read_config(folder, ignore_fields)
    rank, alpha = reader.size("r", 8), reader.typed("lora_alpha", float, 8.0, lambda v: abs(v) < _MOST)
    root = reader.typed("use_rslora", bool, False)
    ranks, alphas = _patterns(reader, "rank_pattern"), _patterns(reader, "alpha_pattern")
    dropout = reader.typed("lora_dropout", float, 0.0, lambda v: 0 <= v < 1)
    reader.finish()
    modules, pairs = _modules(config), _read_pairs(folder / _WEIGHTS, config)
    scales, widest = {}, max(len(a) for a, _ in pairs.values())
    for module, (a, _) in pairs.items():
        if len(a) != (want := _patterned(ranks, module, rank)):
            raise ValueError(f"{folder / _WEIGHTS}: {module}: rank {len(a)}, and {CONFIG} says {want}")
        scales[module] = _patterned(alphas, module, alpha) / (math.sqrt(len(a)) if root else len(a))
    common = next(iter(scales.values())) or 1.0 if len(set(scales.values())) == 1 else 1.0
    flat: dict[str, np.ndarray] = {}
    for module, (a, b) in pairs.items():
        for part in modules[module]:
            stack = () if part.layer is None else (config.num_layers,)
            into = [flat.setdefault(f"{part.path}/a", np.zeros((*stack, part.shape[0], widest), np.float32))]
            into += [flat.setdefault(f"{part.path}/b", np.zeros((*stack, widest, part.shape[1]), np.float32))]
            rows = slice(part.source.start, part.source.start + part.shape[1])
            layer = () if part.layer is None else (part.layer,)
            into[0][(*layer, slice(None), slice(len(a)))] = a.T
            into[1][(*layer, slice(len(a)))] = b[rows].T * (scales[module] / common)
    targets = tuple(t for t in lora_lib.TARGETS if any(path.split("/")[-2] == t for path in flat))
    adapters = flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")
    return LoraConfig(widest, common * widest, dropout, targets), adapters


def _read_config(folder: Path, ignore_fields: Iterable[str]) -> FieldReader:
    """The fields that are on, those of other kinds of adapters left unread, so that `finish` names them."""
    fields = read_json(folder / CONFIG)
    off = (None, False, [], {}, "")
    on = {x: value for x, value in fields.items() if x not in _NOTES and (value not in off or x == "lora_alpha")}
    reader = FieldReader(on, str(folder / CONFIG), ignore_fields)
    reader.choice("peft_type", ("LORA",))
    reader.choice("task_type", ("CAUSAL_LM",), "CAUSAL_LM")
    reader.choice("bias", ("none",), "none")
    reader.choice("init_lora_weights", _INITS, True)
    return reader


def _patterns(reader: FieldReader, name: str) -> dict[re.Pattern, float]:
    """Finite numbers by patterns of layers' names, which match their ends as PEFT matches them."""
    found = {}
    for pattern, value in reader.typed(name, dict, {}).items():
        if type(value) not in (int, float) or not abs(value) < _MOST:
            raise reader.error(name, f"{pattern!r}: expected a finite number")
        if len(pattern) > _LONGEST:
            raise reader.error(name, f"expected patterns of at most {_LONGEST} characters")
        try:
            found[re.compile(rf"(.*\.)?({pattern})")] = value
        except (re.error, OverflowError) as e:
            raise reader.error(name, f"{pattern!r} is no regular expression: {e}") from e
    return found


def _patterned(patterns: dict[re.Pattern, float], module: str, default: float) -> float:
    """The value of the first pattern that matches a layer's name."""
    return next((value for pattern, value in patterns.items() if pattern.fullmatch(module)), default)


def _read_pairs(path: Path, config: ModelConfig) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A `[r, in]` and B `[out, r]` of each layer, float32; ValueError for tensors that no layer of the model takes."""
    if not path.exists() and path.with_suffix(".bin").exists():
        how = "PEFT's save_pretrained writes safetensors"
        raise ValueError(f"{path.with_suffix('.bin')}: pickled adapters are never loaded; convert them ({how})")
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: cannot read adapters: {e}") from e
    modules, found, wrong = _modules(config), {}, []
    for name, value in stored.items():
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in modules:
            wrong.append(f"no layer for {name}")
        elif match[2]:
            found.setdefault(match[1], {})[match[2]] = value.astype(np.float32)
    for module, pair in found.items():
        part, shapes = modules[module][0], {x: w.shape for x, w in pair.items()}
        rank = shapes.get("A", (0,))[0]
        want = {"A": (rank, part.shape[0]), "B": (part.source.total or part.shape[1], rank)}
        if shapes != want or not rank:
            wrong.append(f"{module} has {shapes}, expected {want}")
    if wrong or not found:
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ValueError(f"{path}: {'; '.join(wrong[:20]) or 'no adapters'}{more}")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}
