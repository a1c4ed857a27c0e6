"""Qwen2, Qwen2.5 (biases) and Qwen3 (query and key norms), https://arxiv.org/abs/2505.09388."""

import dataclasses

from pairgrpo_jax.lm.models import llama
from pairgrpo_jax.lm.models.config import (
    ACTIVATIONS,
    FieldReader,
    ModelConfig,
    read_heads,
    read_windows,
    token_ids,
)
from pairgrpo_jax.lm.models.names import Source
from pairgrpo_jax.lm.models.rope import read_rope

MODEL_TYPES = ("qwen2", "qwen3")


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a Qwen2 or Qwen3 `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    family = reader.choice("model_type", MODEL_TYPES)
    sliding = reader.flag("use_sliding_window")
    window = reader.size("sliding_window") if sliding else reader.get("sliding_window") and 0
    reader.get("max_window_layers")  # already spelt out in layer_types
    qwen3_bias = family == "qwen3" and reader.flag("attention_bias")
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        family=family,
        windows=read_windows(reader, heads["num_layers"], window),
        rope=read_rope(reader.get("rope_parameters", {}), reader, heads["head_dim"]),
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=reader.typed("rms_norm_eps", float, 1e-6, lambda v: 0 < v < 1),
        qkv_bias=family == "qwen2" or qwen3_bias,
        out_bias=qwen3_bias,
        qk_norm="head" if family == "qwen3" else "",
        tied=reader.flag("tie_word_embeddings"),
    )


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    names = llama.tensor_names(dataclasses.replace(config, mlp_bias=False))
    if config.qk_norm:
        for x in "qk":
            source = Source(f"model.layers.{{}}.self_attn.{x}_norm.weight")
            names[f"layers/attn/{x}_norm/scale"] = source
    return names
