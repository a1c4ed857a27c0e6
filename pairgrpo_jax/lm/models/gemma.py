"""Gemma 2 and the text part of Gemma 3 (https://arxiv.org/abs/2408.00118, 2503.19786)."""

from pairgrpo_jax.lm.models import qwen
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

MODEL_TYPES = ("gemma2", "gemma3_text")


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a Gemma 2 or Gemma 3 (text) `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    family = reader.choice("model_type", MODEL_TYPES)
    layers, head_dim = heads["num_layers"], heads["head_dim"]
    windows = read_windows(reader, layers, reader.size("sliding_window", 4096))
    bias = reader.flag("attention_bias")
    scalar = reader.typed("query_pre_attn_scalar", float, 256.0, lambda v: v > 0)
    for name in ("hidden_act", "sliding_window_pattern", "_sliding_window_pattern"):
        reader.get(name)  # superseded by hidden_activation and layer_types
    ropes = _ropes(reader, family, head_dim)
    if family == "gemma3_text" and reader.get("attn_logit_softcapping") is not None:
        raise reader.error("attn_logit_softcapping", "transformers' Gemma 3 ignores it; drop it")
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        **ropes,
        family=family,
        windows=windows,
        activation=reader.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        norm="rms_plus_one",
        norm_eps=reader.typed("rms_norm_eps", float, 1e-6, lambda v: 0 < v < 1),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head" if family == "gemma3_text" else "",
        post_norms=True,
        tied=reader.flag("tie_word_embeddings", True),
        embed_scale=heads["hidden_size"] ** 0.5,
        attention_scales=(scalar**-0.5,) * layers,
        attention_softcap=_softcap(reader, "attn_logit_softcapping"),
        logit_softcap=_softcap(reader, "final_logit_softcapping"),
    )


def _softcap(reader: FieldReader, name: str) -> float:
    value = reader.get(name)
    return 0.0 if value is None else reader.typed(name, float, None, lambda v: v > 0)


def _ropes(reader: FieldReader, family: str, head_dim: int) -> dict:
    fields = reader.get("rope_parameters", {})
    if family == "gemma2":
        return {"rope": read_rope(fields, reader, head_dim)}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(fields, dict) or set(fields) - set(kinds):
        raise reader.error("rope_parameters", f"expected an object of {' and '.join(kinds)}")
    full, local = (fields.get(k, {}) for k in kinds)
    return {
        "rope": read_rope(full, reader, head_dim),
        "local_rope": read_rope(local, reader, head_dim),
    }


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    block = "model.layers.{}."
    return qwen.tensor_names(config) | {
        "layers/post_attn_norm/scale": Source(block + "post_attention_layernorm.weight"),
        "layers/mlp_norm/scale": Source(block + "pre_feedforward_layernorm.weight"),
        "layers/post_mlp_norm/scale": Source(block + "post_feedforward_layernorm.weight"),
    }
