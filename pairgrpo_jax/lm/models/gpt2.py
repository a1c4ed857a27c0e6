"""GPT-2: learned positions, layer norms, plain feed-forward, fused q, k and v."""

from pairgrpo_jax.lm.models.attention import default_scale
from pairgrpo_jax.lm.models.config import ACTIVATIONS, FieldReader, ModelConfig, token_ids
from pairgrpo_jax.lm.models.names import Source

MODEL_TYPES = ("gpt2",)


def read_config(reader: FieldReader) -> ModelConfig:
    """Reads the fields of a GPT-2 `config.json`.

    Raises:
      ValueError: naming the field that is missing, malformed or not supported.
    """
    hidden, heads = reader.size("n_embd"), reader.size("n_head")
    if hidden % heads:
        raise reader.error("n_embd", f"is not a multiple of n_head={heads}")
    layers = reader.typed("n_layer", int, None, lambda v: 0 < v <= 4096)
    vocab_size = reader.size("vocab_size")
    base = default_scale(hidden // heads) if reader.flag("scale_attn_weights", True) else 1.0
    by_layer = reader.flag("scale_attn_by_inverse_layer_idx")
    return ModelConfig(
        **token_ids(reader, vocab_size),
        family=reader.choice("model_type", MODEL_TYPES),
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=reader.size("n_inner", 4 * hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_positions=reader.size("n_positions"),
        windows=(0,) * layers,
        rope=None,
        activation=reader.choice("activation_function", ACTIVATIONS, "gelu_new"),
        norm="layer",
        norm_eps=reader.typed("layer_norm_epsilon", float, 1e-5, lambda v: 0 < v < 1),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        tied=reader.flag("tie_word_embeddings", True),
        attention_scales=tuple(base / (i + 1 if by_layer else 1) for i in range(layers)),
    )


def tensor_names(config: ModelConfig) -> dict[str, Source]:
    """Returns where each parameter is in a checkpoint; `{}` stands for the layer."""
    block = "transformer.h.{}."
    names = {
        "embed": Source("transformer.wte.weight"),
        "positions": Source("transformer.wpe.weight"),
    }
    norms = {
        "final_norm": "transformer.ln_f",
        "layers/attn_norm": block + "ln_1",
        "layers/mlp_norm": block + "ln_2",
    }
    for ours, theirs in norms.items():
        names[f"{ours}/scale"] = Source(f"{theirs}.weight")
        names[f"{ours}/bias"] = Source(f"{theirs}.bias")
    linear = {"attn/o": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"}
    for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
        for i, x in enumerate("qkv"):
            start, total = i * config.hidden_size, 3 * config.hidden_size
            names[f"layers/attn/{x}/{leaf}"] = Source(f"{block}attn.c_attn.{kind}", start=start, total=total)
        for ours, theirs in linear.items():
            names[f"layers/{ours}/{leaf}"] = Source(f"{block}{theirs}.{kind}")
    if not config.tied:
        names["lm_head/kernel"] = Source("lm_head.weight", transpose=True)
    return names
