"""The `config.json` that is written, for `transformers` 4.57 and 5."""

import copy
from typing import Any

from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.rope import with_longrope

# Fields that are not true of what is written: other dtypes, code that is not there, weights to be quantised.
_OF_THE_FILE = ("torch_dtype", "dtype", "auto_map", "quantization_config")
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "smollm3": "SmolLM3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def exported_fields(model: Model, dtype: str) -> dict[str, Any]:
    """The fields of a `config.json` that are true of parameters of this dtype; ValueError if the model has none."""
    if not model.hf_config:
        raise ValueError("hf_config: empty; Model(hf_config=...) needs the fields of a config.json")
    fields = with_longrope({k: v for k, v in model.hf_config.items() if k not in _OF_THE_FILE})
    return fields | both_ropes(fields) | {"architectures": [_ARCHITECTURES[model.config.family]], "dtype": dtype}


def both_ropes(fields: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding in both forms: `rope_parameters`, and what `transformers` 4 reads in its place.

    Version 4 ignores `rope_parameters` and would take its default theta. Of Gemma 3 it scales the layers with full
    attention alone.
    """
    from transformers import AutoConfig

    rest = copy.deepcopy({k: v for k, v in fields.items() if k != "model_type"})  # it writes into nested ones
    rope = getattr(AutoConfig.for_model(fields["model_type"], **rest), "rope_parameters", None)
    if not rope:
        return {}
    full, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    old = {"rope_theta": full["rope_theta"], "rope_scaling": _old_scaling(fields["model_type"], full)}
    if local is not None:
        old["rope_local_base_freq"] = local["rope_theta"]
    if full.get("partial_rotary_factor", 1.0) != 1:
        old["partial_rotary_factor"] = full["partial_rotary_factor"]
    return {"rope_parameters": copy.deepcopy(rope), **old}


def _old_scaling(family: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    """Version 4's `rope_scaling`; two of its families refuse, and rightly, any field beyond those they read."""
    if rope["rope_type"] == "default":
        return None
    scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
    strict = {"phi3": ("short_factor", "long_factor"), "olmo2": ("factor",)}.get(family, ())
    if strict and set(scaling) - {"type", "rope_type", "original_max_position_embeddings"} == set(strict):
        return {"type": rope["rope_type"]} | {name: rope[name] for name in strict}
    return scaling
