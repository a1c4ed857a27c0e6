"""Phi-3, Phi-3.5, Phi-4: Llama with fused products, a window, a part of each head rotated (https://arxiv.org/abs/2404.14219)."""

from pairgrpo_jax.lm.models import llama
from pairgrpo_jax.lm.models.config import ACTIVATIONS, FieldReader, ModelConfig, read_heads, same_windows, token_ids
from pairgrpo_jax.lm.models.names import Source
from pairgrpo_jax.lm.models.rope import read_rope

MODEL_TYPES = ("phi3",)
# Fields of the files of Phi-3 and Phi-4-mini that transformers does not look at, with what they must mean.
_IDLE = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "lm_head_bias": (False,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
}


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a Phi-3 `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    for name, allowed in _IDLE.items():
        reader.choice(name, allowed, allowed[0])
    for name in ("original_max_position_embeddings", "partial_rotary_factor"):
        reader.get(name)  # already spelt out in rope_parameters
    window = reader.size("sliding_window") if reader.get("sliding_window") is not None else 0
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        family=reader.choice("model_type", MODEL_TYPES),
        windows=same_windows(reader, heads["num_layers"], window),
        rope=read_rope(reader.get("rope_parameters", {}), reader, heads["head_dim"], partial=True),
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=reader.typed("rms_norm_eps", float, 1e-5, lambda v: 0 < v < 1),
        tied=reader.flag("tie_word_embeddings"),
    )


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    fused = {
        "self_attn.qkv_proj": {"attn/q": query, "attn/k": key, "attn/v": key},
        "mlp.gate_up_proj": {"mlp/gate": config.intermediate_size, "mlp/up": config.intermediate_size},
    }
    names = llama.tensor_names(config)
    for theirs, parts in fused.items():
        start = 0
        for ours, width in parts.items():
            source = Source(f"model.layers.{{}}.{theirs}.weight", True, start, sum(parts.values()))
            names[f"layers/{ours}/kernel"] = source
            start += width
    return names
