"""Presents a GGUF file as a Hugging Face checkpoint: same config fields, names and layout."""

import dataclasses
import logging
import math
from collections.abc import Iterable
from typing import Any

import gguf
import numpy as np

from pairgrpo_jax.lm.files.gguf_parts import GGUFModel
from pairgrpo_jax.lm.files.gguf_rope import DIVISORS, LONG, SHORT, read_rope

_log = logging.getLogger("pairgrpo_jax.lm")
_FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "phi3": "phi3",
}
_INTERLEAVED = ("llama", "smollm3")  # whose files hold the two rotary halves of every head as pairs
_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window_pattern": "sliding_window_pattern",
}
_BIASES = {"attention_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"}
# Read elsewhere, or repeated elsewhere in the file.
_CHECKED = {
    "vocab_size",
    "rope.dimension_count",
    "attention.value_length",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
# Accepted with these values, which mean what the models here do.
_OFF = {
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
    "attention.max_alibi_bias": 0,
    "attention.clamp_kqv": 0,
    "use_parallel_residual": False,
    "pooling_type": 0,
}


def read_config(file: GGUFModel, ignore: Iterable[str] = ()) -> dict[str, Any]:
    """Translates the metadata of a GGUF file to the fields of a `config.json`.

    Args:
      file: the open file.
      ignore: fields to accept without implementing them, with or without the architecture before them.

    Raises:
      ValueError: naming file and field, for an architecture or a field not supported.
    """
    arch = file.fields.get("general.architecture")
    if arch not in _FAMILIES:
        raise ValueError(
            f"{file.where}: field 'general.architecture' = {arch!r}: unknown architecture; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    own = {k.removeprefix(f"{arch}."): v for k, v in file.fields.items() if k.startswith(f"{arch}.")}
    ignored = {name.removeprefix(f"{arch}.") for name in ignore}
    off = {name for name, value in own.items() if name in _OFF and value == _OFF[name]}
    unknown = [f"{arch}.{name}" for name in sorted(own.keys() - _FIELDS.keys() - _CHECKED - ignored - off)]
    if unknown:
        remedy = f"to load without them: --ignore-fields {' '.join(unknown)} (in Python ignore_fields)"
        raise ValueError(f"{file.where}: fields this library does not implement: {', '.join(unknown)}; {remedy}")
    config = {"model_type": _FAMILIES[arch]} | {_FIELDS[k]: own[k] for k in _FIELDS if k in own}
    missing = [k for k in list(_FIELDS)[:5] if k not in own]
    if missing:
        raise ValueError(f"{file.where}: missing field '{arch}.{missing[0]}'")
    _check_head_dim(file, arch, own, config)
    shape = file.shapes.get("token_embd.weight", (0,))
    config["vocab_size"] = shape[0]
    config["tie_word_embeddings"] = "output.weight" not in file
    config |= {name: True for name, tensor in _BIASES.items() if tensor in file}
    if own.get("attention.sliding_window") == 0:
        config["sliding_window"] = None
    if arch == "phi3" and "attention.sliding_window" not in own:
        _log.warning(
            "%s: no field 'phi3.attention.sliding_window' (an old file): every layer sees the whole text", file.where
        )
    if arch == "smollm3":
        _log.warning(
            "%s: GGUF does not hold which layers have no position (NoPE): every fourth, as in llama.cpp and SmolLM3-3B",
            file.where,
        )
    config |= read_rope(file, arch, own)
    if arch.startswith("gemma"):
        config["query_pre_attn_scalar"] = _gemma_scale(arch, config)
    return config | _token_ids(file)


def _token_ids(file: GGUFModel) -> dict[str, Any]:
    """Texts end with eos, turns with eot, tool calls with eom: any of them ends a reply."""
    ids = {name: file.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding", "eos", "eot", "eom")}
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    eos = ends if len(ends) > 1 else next(iter(ends), None)
    return {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"], "eos_token_id": eos}


def _check_head_dim(file: GGUFModel, arch: str, own: dict, config: dict) -> None:
    numbers = (own["embedding_length"], own["attention.head_count"])
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(f"{file.where}: field '{arch}.attention.head_count': not a positive size")
    config.setdefault("head_dim", numbers[0] // numbers[1])
    whole = ("attention.value_length",) if arch == "phi3" else ("rope.dimension_count", "attention.value_length")
    for name in whole:  # Phi-4-mini rotates a part of each head
        if own.get(name, config["head_dim"]) != config["head_dim"]:
            why = f"differs from the head size {config['head_dim']}"
            raise ValueError(f"{file.where}: field '{arch}.{name}' = {own[name]!r}: {why}")


def _gemma_scale(arch: str, config: dict) -> int:
    """The file does not carry it; the two 27B models alone differ from the head size."""
    is_27b = config["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[arch]
    by_width = config["hidden_size"] // config["num_attention_heads"]
    return by_width if is_27b else config["head_dim"]


@dataclasses.dataclass(frozen=True)
class GGUFReader:
    """The tensors of a GGUF file under their Hugging Face names, `[out, in]`, unpermuted."""

    file: GGUFModel
    names: dict[str, str]
    heads: tuple[int, int]

    @property
    def where(self) -> str:
        """The file, for error messages."""
        return self.file.where

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {theirs: self.file.shapes[name] for theirs, name in self.names.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a block of a tensor; the whole tensor is dequantised."""
        x = self.file.read(self.names[name])
        arch = self.file.fields["general.architecture"]
        if arch in _INTERLEAVED and ".q_proj." in name:
            x = _unpermute(x, self.heads[0])
        if arch in _INTERLEAVED and ".k_proj." in name:
            x = _unpermute(x, self.heads[1])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            x = x - 1  # the file stores Gemma's weight + 1
        return x[index]


def open_tensors(file: GGUFModel, config: dict[str, Any], wanted: list[str]) -> GGUFReader:
    """Maps the tensors of a file to Hugging Face names; those nobody wants keep their own."""
    arch = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[file.fields["general.architecture"]]
    table = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    names = {}
    for name in wanted:
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is not None and theirs in file:
            names[name] = theirs
    rest = file.shapes.keys() - set(names.values()) - {DIVISORS, LONG, SHORT}
    heads = config["num_attention_heads"]
    return GGUFReader(file, names | {x: x for x in rest}, (heads, config.get("num_key_value_heads") or heads))


def _unpermute(x: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's interleaving of the two rotary halves of every head."""
    pairs = x.reshape(heads, x.shape[0] // heads // 2, 2, math.prod(x.shape[1:]))
    return pairs.swapaxes(1, 2).reshape(x.shape)
