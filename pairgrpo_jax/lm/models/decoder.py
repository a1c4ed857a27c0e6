"""The decoder shared by every family: Flax modules with layers stacked and scanned."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from pairgrpo_jax.core.terms import as_float
from pairgrpo_jax.lm.models import rope
from pairgrpo_jax.lm.models.attention import attend, default_scale
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.layout import activations
from pairgrpo_jax.lm.models.places import KV
from pairgrpo_jax.lm.models.products import project
from pairgrpo_jax.lm.models.quantized import dense, rows

_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

_KEPT = "linear"  # outputs of linear layers, for the backward pass


class Linear(nn.Module):
    """`x @ kernel + bias`, plus a low-rank update where the `lora` collection holds one.

    Operands are rounded to `dtype`; products are accumulated in float32 and returned in `out`, by default x's dtype.
    """

    features: int
    bias: bool
    dtype: Any
    out: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., d]` to `[..., features]`."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features))
        shape = (*x.shape[:-1], self.features)
        x = x.reshape(-1, x.shape[-1])  # a plain matrix: XLA copies other operands in the backward pass
        y = project(x, kernel, self.dtype, self.out)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(x.dtype)
        if self.has_variable("lora", "a"):
            a, b, rate = (self.get_variable("lora", name) for name in ("a", "b", "rate"))
            if self.has_rng("dropout"):
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, x.shape)
                x = jnp.where(keep, x / (1 - rate).astype(x.dtype), 0)
            y = y + project(project(x, a, self.dtype), b, self.dtype, self.out)
        return checkpoint_name(y, _KEPT).reshape(shape)


class Norm(nn.Module):
    """RMS norm (weight, or Gemma's weight + 1) or layer norm, computed in float32 or better."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis."""
        dtype, x = x.dtype, as_float(x)
        init = nn.initializers.zeros if self.kind == "rms_plus_one" else nn.initializers.ones
        scale = as_float(self.param("scale", init, (x.shape[-1],)))
        if self.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        x = x * (scale + 1 if self.kind == "rms_plus_one" else scale)
        if self.kind == "layer":
            x = x + as_float(self.param("bias", nn.initializers.zeros, (x.shape[-1],)))
        return x.astype(dtype)


class Attention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245)."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x, positions, table, window, scale, past: list[KV]) -> tuple:
        """Returns the output `[B, T, d]` and this text's keys and values `[B, H, T, D]`."""
        c = self.config

        def heads(name: str, count: int) -> jax.Array:
            y = Linear(count * c.head_dim, c.qkv_bias, self.dtype, name=name)(x)
            by_head = (*x.shape[:2], count, c.head_dim)
            if c.qk_norm and name != "v":
                y = y.reshape(by_head) if c.qk_norm == "head" else y
                y = Norm(c.norm, c.norm_eps, name=f"{name}_norm")(y)
            y = y.reshape(by_head)
            if table is not None and name != "v":
                y = rope.rotate(y, table)
            return y.swapaxes(1, 2)

        q, k, v = heads("q", c.num_heads), heads("k", c.num_kv_heads), heads("v", c.num_kv_heads)
        places = [*past, KV(k, v, positions)]
        how = {"windows": c.windows, "softcap": c.attention_softcap, "mesh": self.mesh}
        out = attend(q, places, positions, scale=scale, window=window, **how)
        out = out.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return Linear(c.hidden_size, c.out_bias, self.dtype, name="o")(out), (k, v)


class Mlp(nn.Module):
    """Feed-forward block, gated (https://arxiv.org/abs/2002.05202) or plain."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., d]` to `[..., d]`."""
        c = self.config
        up = Linear(c.intermediate_size, c.mlp_bias, self.dtype, name="up")(x)
        act = _ACTIVATIONS[c.activation]
        if c.gated:
            gate = Linear(c.intermediate_size, c.mlp_bias, self.dtype, name="gate")(x)
            up = act(gate) * up
        else:
            up = act(up)
        return Linear(c.hidden_size, c.mlp_bias, self.dtype, name="down")(up)


class Block(nn.Module):
    """One layer: attention and feed-forward, each normed before, after (OLMo 2) or both (Gemma)."""

    config: ModelConfig
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x, layer: dict, past_kv: list, shared: tuple) -> tuple:
        """Maps `x` `[B, T, d]`; returns it with the layer's new keys and values."""
        c = self.config
        positions, rope_tables, past_positions = shared
        past = [KV(k, v, at) for (k, v), at in zip(past_kv, past_positions)]
        table = None if rope_tables is None else rope_tables[layer["rope"]]

        def norm(name: str, y: jax.Array) -> jax.Array:
            return Norm(c.norm, c.norm_eps, name=name)(y)

        attention = Attention(c, self.dtype, self.mesh, name="attn")
        x = activations(x, self.mesh)
        y = norm("attn_norm", x) if c.pre_norms else x
        y, kv = attention(y, positions, table, layer["window"], layer["scale"], past)
        x = x + (norm("post_attn_norm", y) if c.post_norms else y)
        y = Mlp(c, self.dtype, name="mlp")(norm("mlp_norm", x) if c.pre_norms else x)
        x = x + (norm("post_mlp_norm", y) if c.post_norms else y)
        return activations(x, self.mesh), kv


class Decoder(nn.Module):
    """Embedding, L scanned blocks, final norm and vocabulary projection.

    Parameters have whatever dtype they are given, or are codes (`quantized`); activations are computed in `dtype`,
    of products with parameters whose operands are rounded to `operands` (None: `dtype`).
    The backward pass keeps the outputs of the linear layers and recomputes what lies between,
    which is cheaper than memory; with `remat` it keeps a layer's input alone.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: bool = False
    mesh: Mesh | None = None
    operands: Any = None

    @property
    def narrow(self) -> Any:
        """The dtype of operands."""
        return self.dtype if self.operands is None else self.operands

    @property
    def wide(self) -> Any:
        """The dtype of logits."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def setup(self) -> None:
        """Builds the modules; the block's parameters get a leading axis L."""
        c = self.config
        keep = None if self.remat else jax.checkpoint_policies.save_only_these_names(_KEPT)
        block = nn.remat(Block, prevent_cse=False, policy=keep)
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.num_layers,
        )(c, self.narrow, self.mesh)
        init = nn.initializers.normal(0.02)
        self.embed = self.param("embed", init, (c.vocab_size, c.hidden_size))
        if c.rope is None:
            self.positions = self.param("positions", init, (c.max_positions, c.hidden_size))
        self.final_norm = Norm(c.norm, c.norm_eps)
        if not c.tied:
            self.lm_head = Linear(c.vocab_size, False, self.narrow, self.wide)

    def hidden(self, tokens: jax.Array, positions: jax.Array, past: list[KV]) -> tuple:
        """Returns final hidden states and this text's keys and values.

        Args:
          tokens: `[B, T]`.
          positions: `[B, T]`, -1 at padding.
          past: keys and values seen before this text, `[L, B', H, S, D]` each.

        Returns:
          `([B, T, d], KV of [L, B, H, T, D])`.
        """
        c = self.config
        x = dense(rows(self.embed, tokens), self.dtype) * jnp.asarray(c.embed_scale, self.dtype)
        if c.rope is None:
            at = self.positions.at[jnp.maximum(positions, 0)]
            learned = at.get(mode="fill", fill_value=jnp.nan)  # beyond the context: never a silent number
            x = x + learned.astype(self.dtype)
        shared = (positions, _rope_tables(c, positions), [kv.positions for kv in past])
        x, (k, v) = self.layers(x, _layer_inputs(c), [(kv.k, kv.v) for kv in past], shared)
        return self.final_norm(x), KV(k, v, positions)

    def unembed(self, x: jax.Array) -> jax.Array:
        """Projects hidden states `[..., d]` to logits `[..., V]`, float32 or better."""
        if self.config.tied:
            logits = project(x.reshape(-1, x.shape[-1]), self.embed, self.narrow, self.wide, axis=1)
            logits = logits.reshape(*x.shape[:-1], -1)
        else:
            logits = self.lm_head(x)
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def __call__(self, tokens: jax.Array, positions: jax.Array, past: list[KV]) -> tuple:
        """Returns logits `[B, T, V]` and this text's keys and values; see `hidden`."""
        x, kv = self.hidden(tokens, positions, past)
        return self.unembed(x), kv


def run(
    decoder: Decoder,
    params: Any,
    tokens: jax.Array,
    positions: jax.Array,
    past: Sequence[KV] = (),
    lora: Any = None,
    dropout_key: jax.Array | None = None,
    method: str | None = None,
) -> tuple[jax.Array, KV]:
    """Runs the decoder as a pure function; see `Decoder.__call__` and `Decoder.hidden`."""
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    out: Any = decoder.apply(variables, tokens, positions, list(past), method=method, rngs=rngs)
    return out


def unembed(decoder: Decoder, params: Any, hidden: jax.Array, lora: Any = None) -> jax.Array:
    """Projects hidden states `[..., d]` to logits `[..., V]`, float32 or better."""
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    logits: Any = decoder.apply(variables, hidden, method="unembed")
    return logits


def _rope_tables(config: ModelConfig, positions: jax.Array) -> jax.Array | None:
    """Returns `[kinds, 2, B, T, D'/2]`: full attention, then local, then no position, as far as the model has them."""
    if config.rope is None:
        return None
    ropes = [r for r in (config.rope, config.local_rope) if r is not None]
    tables = [rope.tables(r, config.head_dim, positions) for r in ropes]
    return jnp.stack([*tables, rope.identity(tables[0])] if config.nope_layers else tables)


def _layer_inputs(config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns what differs between layers, each `[L]`."""
    windows = np.asarray(config.windows, np.int32)
    kinds = np.where((windows > 0) & (config.local_rope is not None), 1, 0).astype(np.int32)
    kinds[list(config.nope_layers)] = 1 if config.local_rope is None else 2
    scales = config.attention_scales or (default_scale(config.head_dim),) * config.num_layers
    return {
        "window": windows,
        "rope": kinds,
        "scale": np.asarray(scales, np.float32),
    }
