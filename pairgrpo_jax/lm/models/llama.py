"""Llama, and Mistral which differs by a sliding window (https://arxiv.org/abs/2302.13971)."""

from pairgrpo_jax.lm.models.config import ACTIVATIONS, FieldReader, ModelConfig, read_heads, same_windows, token_ids
from pairgrpo_jax.lm.models.names import Source
from pairgrpo_jax.lm.models.rope import read_rope

MODEL_TYPES = ("llama", "mistral")


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a Llama or Mistral `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    family = reader.choice("model_type", MODEL_TYPES)
    window = reader.size("sliding_window") if reader.get("sliding_window") is not None else 0
    if window and family == "llama":
        raise reader.error("sliding_window", "Llama has no sliding window")
    bias = reader.flag("attention_bias")
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        family=family,
        windows=same_windows(reader, heads["num_layers"], window),
        rope=read_rope(reader.get("rope_parameters", {}), reader, heads["head_dim"]),
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=reader.typed("rms_norm_eps", float, 1e-6, lambda v: 0 < v < 1),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=reader.flag("mlp_bias"),
        tied=reader.flag("tie_word_embeddings"),
    )


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    block = "model.layers.{}."
    names = {
        "embed": Source("model.embed_tokens.weight"),
        "final_norm/scale": Source("model.norm.weight"),
        "layers/attn_norm/scale": Source(block + "input_layernorm.weight"),
        "layers/mlp_norm/scale": Source(block + "post_attention_layernorm.weight"),
    }
    linear = {f"attn/{x}": f"self_attn.{x}_proj" for x in "qkvo"}
    linear |= {f"mlp/{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    biased = {
        **dict.fromkeys(("attn/q", "attn/k", "attn/v"), config.qkv_bias),
        "attn/o": config.out_bias,
    }
    for ours, theirs in linear.items():
        names[f"layers/{ours}/kernel"] = Source(f"{block}{theirs}.weight", transpose=True)
        if biased.get(ours, config.mlp_bias):
            names[f"layers/{ours}/bias"] = Source(f"{block}{theirs}.bias")
    if not config.tied:
        names["lm_head/kernel"] = Source("lm_head.weight", transpose=True)
    return names
