"""LoRA adapters read from files."""

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pairgrpo_jax.lm.models import lora as lora_lib
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.lora import LoraConfig


def load_adapters(path: Path, lora: LoraConfig, config: ModelConfig) -> Any:
    """Reads adapters that were saved flat, names joined by "/".

    Raises:
      ValueError: if there is no such file, or it does not hold the adapters of `lora` on this model.
    """
    try:
        flat = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: cannot read adapters: {e}") from e
    shapes = jax.eval_shape(lambda: lora_lib.init(lora, config, jax.random.key(0)))
    want: dict[str, Any] = flax.traverse_util.flatten_dict(shapes, sep="/")
    if {k: v.shape for k, v in flat.items()} != {k: v.shape for k, v in want.items()}:
        raise ValueError(f"{path}: not the adapters of {lora} on this model")
    return flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")
