"""SmolLM3: Llama in which every fourth layer has no position (https://arxiv.org/abs/2501.18795)."""

from pairgrpo_jax.lm.models import llama
from pairgrpo_jax.lm.models.config import (
    ACTIVATIONS,
    FieldReader,
    ModelConfig,
    read_heads,
    read_windows,
    token_ids,
)
from pairgrpo_jax.lm.models.rope import read_rope

MODEL_TYPES = ("smollm3",)

tensor_names = llama.tensor_names


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a SmolLM3 `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    heads = read_heads(reader)
    window = reader.size("sliding_window") if reader.get("sliding_window") is not None else None
    for name in ("use_sliding_window", "no_rope_layer_interval", "max_window_layers"):
        reader.get(name)  # already spelt out in layer_types and no_rope_layers
    bias = reader.flag("attention_bias")
    return ModelConfig(
        **heads,
        **token_ids(reader, heads["vocab_size"]),
        family=reader.choice("model_type", MODEL_TYPES),
        windows=read_windows(reader, heads["num_layers"], window),
        rope=read_rope(reader.get("rope_parameters", {}), reader, heads["head_dim"]),
        nope_layers=_nope_layers(reader, heads["num_layers"]),
        activation=reader.choice("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=reader.typed("rms_norm_eps", float, 1e-6, lambda v: 0 < v < 1),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=reader.flag("mlp_bias"),
        tied=reader.flag("tie_word_embeddings", True),
    )


def _nope_layers(reader: FieldReader, layers: int) -> tuple[int, ...]:
    """Returns the layers at which `no_rope_layers`, whose 1 means that there is rope, holds a 0."""
    flags = reader.get("no_rope_layers", [1] * layers)
    if not isinstance(flags, list) or len(flags) < layers or any(x not in (0, 1) for x in flags):
        raise reader.error("no_rope_layers", f"expected a list of {layers} entries, 1 with rope, 0 without")
    return tuple(i for i in range(layers) if not flags[i])
