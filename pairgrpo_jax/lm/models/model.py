"""A model: its description, parameters and tokenizer."""

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pairgrpo_jax.lm.models import cache as kv_cache
from pairgrpo_jax.lm.models import gemma, gpt2, llama, olmo2, phi3, qwen, rope, smollm3
from pairgrpo_jax.lm.models.cache import Cache
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.config import FieldReader, ModelConfig
from pairgrpo_jax.lm.models.decoder import Decoder, run

_MODULES = (llama, qwen, gemma, gpt2, smollm3, olmo2, phi3)
FAMILIES = {name: family for family in _MODULES for name in family.MODEL_TYPES}


@dataclasses.dataclass(frozen=True)
class Model:
    """A causal language model.

    Attributes:
      config: what it is made of.
      params: the loaded parameters, a pytree; every function takes parameters explicitly.
      tokenizer: a `transformers` tokenizer, or None.
      hf_config: the fields of `config.json`, kept for saving.
      generation: the fields of `generation_config.json`, kept for saving.
      dtype: of the activations.
      operands: dtype that operands of products with parameters are rounded to, whose sums are float32; None: `dtype`.
      remat: whether the backward pass recomputes layers to save memory.
      chat: how conversations become text.
      mesh: of the devices that texts and parameters are split over; long texts need it for a TPU's own attention.
    """

    config: ModelConfig
    params: Any = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(default=None, repr=False)
    hf_config: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False, repr=False)
    dtype: Any = jnp.float32
    remat: bool = False
    generation: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    chat: Chat = dataclasses.field(default_factory=Chat)
    mesh: Mesh | None = None
    operands: Any = None

    @property
    def skeleton(self) -> "Model":
        """This model without parameters and texts: hashable, to be static under jit, which then keeps none alive."""
        kept = {name: getattr(self, name) for name in ("dtype", "remat", "mesh", "operands")}
        return Model(self.config, None, **kept)

    @property
    def decoder(self) -> Decoder:
        """The Flax module."""
        return Decoder(self.config, self.dtype, self.remat, self.mesh, self.operands)

    def apply(
        self,
        params: Any,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        lengths: jax.Array | None = None,
        cache: Cache | None = None,
        lora: Any = None,
        dropout_key: jax.Array | None = None,
    ) -> Any:
        """Returns the logits of every next token.

        Args:
          params: as `model.params`.
          tokens: `[B, T]`.
          positions: `[B, T]`, -1 at padding, on whichever side; default 0, 1, 2, ... after
            what the cache holds.
          lengths: `[B]`, real tokens of right-padded rows; only used to make positions.
          cache: what the rows have seen before.
          lora: variables of `lora.variables`.
          dropout_key: turns on the dropout of `lora`.

        Returns:
          Logits `[B, T, V]`; with a cache, `(logits, cache)`.
        """
        _check_tokens(self.config, tokens, positions, lengths)
        if positions is None:
            positions = default_positions(tokens.shape, lengths, cache)
        past = cache.places() if cache is not None else []
        logits, kv = run(self.decoder, params, tokens, positions, past, lora, dropout_key)
        return logits if cache is None else (logits, kv_cache.append(cache, kv))


def _check_tokens(config: ModelConfig, tokens: Any, positions: Any, lengths: Any) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {tokens.dtype} {tokens.shape}")
    if 0 in tokens.shape:
        raise ValueError(f"tokens: empty batch or text, shape {tokens.shape}")
    if positions is not None and positions.shape != tokens.shape:
        raise ValueError(f"positions: shape {positions.shape}, expected {tokens.shape}")
    if lengths is not None and lengths.shape != tokens.shape[:1]:
        raise ValueError(f"lengths: shape {lengths.shape}, expected {tokens.shape[:1]}")
    if config.rope is None and tokens.shape[1] > config.max_positions:
        raise ValueError(f"tokens: {tokens.shape[1]} steps, field n_positions={config.max_positions}")


def default_positions(
    shape: tuple[int, ...], lengths: jax.Array | None = None, cache: Cache | None = None
) -> jax.Array:
    """Returns positions `[B, T]` of right-padded rows, -1 at padding."""
    steps = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    start = 0 if cache is None else kv_cache.next_positions(cache)[:, None]
    positions = steps + start
    return positions if lengths is None else jnp.where(steps < lengths[:, None], positions, -1)


def read_config(fields: dict[str, Any], where: str, ignore_fields: Iterable[str] = ()) -> ModelConfig:
    """Reads the fields of a `config.json`, with `transformers`' defaults for absent ones.

    Args:
      fields: the JSON object.
      where: the file, for error messages.
      ignore_fields: fields to accept without implementing them.

    Raises:
      ValueError: naming file and field, for an unknown architecture, a malformed value, or a
        field or value that is not implemented here.
    """
    from transformers import AutoConfig

    name = fields.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{where}: field 'model_type' = {name!r}: unknown architecture ({known})")
    FieldReader(fields, where).typed(
        "n_layer" if name == "gpt2" else "num_hidden_layers", int, 1, lambda v: 0 < v <= 4096
    )
    _check_layer_lists(fields, where)
    rest = rope.with_longrope({k: v for k, v in fields.items() if k not in ("model_type", "auto_map")})
    rest = copy.deepcopy(rest)  # it is written to
    try:
        read = AutoConfig.for_model(name, **rest)
        full = read.to_dict()
    except Exception as e:  # its validators raise several kinds
        raise ValueError(f"{where}: transformers refuses this {name} config: {e}") from e
    if not _is_native(fields.get("auto_map"), type(read).__name__.removesuffix("Config")):
        full["auto_map"] = fields["auto_map"]
    reader = FieldReader(full, where, ignore_fields)
    config = FAMILIES[name].read_config(reader)
    reader.finish()
    return config


def _check_layer_lists(fields: dict[str, Any], where: str) -> None:
    """Raises ValueError for a list with fewer entries than there are layers; longer ones pass, as in `transformers`."""
    layers = fields.get("num_hidden_layers")
    for name in ("no_rope_layers", "layer_types"):
        value = fields.get(name)
        if layers is not None and isinstance(value, list) and len(value) < layers:
            remedy = f"give it {layers} entries, one a layer, or take it out for the default of the family"
            raise ValueError(
                f"{where}: field '{name}' has {len(value)} entries, field 'num_hidden_layers' = {layers}; {remedy}"
            )


def _is_native(auto_map: Any, name: str) -> bool:
    """Returns whether `auto_map` names no code of a model but what became `transformers`' own (Phi-3), as is ported."""
    if not auto_map:
        return True
    if not isinstance(auto_map, dict):
        return False
    models = [x for key, x in auto_map.items() if key.startswith("AutoModel")]
    return all(isinstance(x, str) and x.rpartition(".")[2] == f"{name}ForCausalLM" for x in models)
