"""OLMo 2: norms after each block instead of before, queries and keys normed across heads (https://arxiv.org/abs/2501.00656)."""

from pairgrpo_jax.lm.models import qwen
from pairgrpo_jax.lm.models.config import ACTIVATIONS, FieldReader, ModelConfig, read_heads, same_windows, token_ids
from pairgrpo_jax.lm.models.names import Source
from pairgrpo_jax.lm.models.rope import read_rope

MODEL_TYPES = ("olmo2",)


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of an OLMo 2 `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    bias = reader.flag("attention_bias")
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        family=reader.choice("model_type", MODEL_TYPES),
        windows=same_windows(reader, heads["num_layers"], 0),
        rope=read_rope(reader.get("rope_parameters", {}), reader, heads["head_dim"]),
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=reader.typed("rms_norm_eps", float, 1e-5, lambda v: 0 < v < 1),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="whole",
        pre_norms=False,
        post_norms=True,
        tied=reader.flag("tie_word_embeddings"),
    )


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    block = "model.layers.{}."
    names = qwen.tensor_names(config)
    del names["layers/attn_norm/scale"], names["layers/mlp_norm/scale"]
    return names | {
        "layers/post_attn_norm/scale": Source(block + "post_attention_layernorm.weight"),
        "layers/post_mlp_norm/scale": Source(block + "post_feedforward_layernorm.weight"),
    }
