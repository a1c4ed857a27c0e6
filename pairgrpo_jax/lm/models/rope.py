"""Rotary position embeddings and their long-context scalings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.lm.models.config import FieldReader, RopeConfig

_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
# What each kind must bring, beside `factor`; other fields are refused by name.
_EXTRA = {
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "longrope": {"short_factor", "long_factor", "attention_factor"},
    "llama3": {"low_freq_factor", "high_freq_factor"},
}


def with_longrope(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config with today's name of the scaling that the first files of Phi-3 call `su`."""
    renamed = {}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(rope := fields.get(name), dict):
            renamed[name] = rope | {k: "longrope" for k in ("type", "rope_type") if rope.get(k) == "su"}
    return fields | renamed


def read_rope(fields: dict[str, Any], config: FieldReader, head_dim: int, partial: bool = False) -> RopeConfig:
    """Reads `rope_parameters` (or the older `rope_scaling`) as `transformers` normalises it.

    Args:
      fields: the rope dictionary of one layer kind, `rope_theta` included.
      config: the whole config, for the maximum position and for error messages.
      head_dim: channels of a head.
      partial: whether the family can rotate a part of a head.

    Raises:
      ValueError: for an unknown kind or field, or a value out of range.
    """
    if not isinstance(fields, dict):
        raise config.error("rope_parameters", "expected an object")
    reader = FieldReader(fields, f"{config.where}: rope_parameters", config.ignore)
    kind = reader.choice("rope_type", _KINDS, "default")
    reader.get("type")
    share = reader.typed("partial_rotary_factor", float, 1.0, lambda v: v == 1 or (partial and 0 < v < 1))
    rotated = int(head_dim * share)
    if rotated < 2 or rotated % 2:
        raise reader.error("partial_rotary_factor", f"rotates {rotated} channels; rotary embeddings need pairs")
    theta = reader.typed("rope_theta", float, 10_000.0, lambda v: v > 1)
    limit = config.size("max_position_embeddings")
    old = reader.size("original_max_position_embeddings", limit)
    if kind == "default":
        reader.finish()
        return RopeConfig(theta, partial=share)
    default = limit / old if kind in ("longrope", "yarn") else None
    factor = reader.typed("factor", float, default, lambda v: v > 0)
    extra = {name: reader.get(name) for name in _EXTRA.get(kind, ()) if name in fields}
    reader.finish()
    old = limit if kind == "dynamic" else old
    try:
        return RopeConfig(theta, kind, factor, old, partial=share, **_extras(kind, extra, factor, old, rotated))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise ValueError(f"{reader.where}: {kind} scaling is incomplete or malformed: {e}") from e


def _extras(kind: str, extra: dict, factor: float, old: int, rotated: int) -> dict[str, Any]:
    given = extra.get("attention_factor")
    if kind == "llama3":
        low, high = float(extra["low_freq_factor"]), float(extra["high_freq_factor"])
        if not 0 < low < high:
            raise ValueError("low_freq_factor must lie between 0 and high_freq_factor")
        return {"low_freq_factor": low, "high_freq_factor": high}
    if kind == "yarn":
        scale, all_dim = extra.get("mscale"), extra.get("mscale_all_dim")
        inferred = _mscale(factor, 1.0)
        if scale and all_dim:
            inferred = _mscale(factor, scale) / _mscale(factor, all_dim)
        fast, slow = float(extra.get("beta_fast") or 32), float(extra.get("beta_slow") or 1)
        if not 0 < slow < fast:
            raise ValueError("beta_slow must lie between 0 and beta_fast")
        return {
            "attention_factor": float(inferred if given is None else given),
            "beta_fast": fast,
            "beta_slow": slow,
            "truncate": bool(extra.get("truncate", True)),  # null is false, as in transformers
        }
    if kind == "longrope":
        short, long = (tuple(map(float, extra[k])) for k in ("short_factor", "long_factor"))
        if not len(short) == len(long) == rotated // 2 or min(short + long) <= 0:
            raise ValueError(f"short_factor and long_factor need {rotated // 2} positive numbers")
        inferred = math.sqrt(1 + math.log(factor) / math.log(old)) if factor > 1 else 1.0
        attention = inferred if given is None else given
        return {"short_factor": short, "long_factor": long, "attention_factor": float(attention)}
    return {}


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(inverse: np.ndarray, rope: RopeConfig) -> np.ndarray:
    wavelength = 2 * math.pi / inverse
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_max / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0.0, 1.0)  # 0: slow channels, divided; 1: fast channels, kept
    return (1 - smooth) * inverse / rope.factor + smooth * inverse


def _yarn(inverse: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Interpolates slow channels and keeps fast ones (https://arxiv.org/abs/2309.00071)."""
    dim = 2 * inverse.size

    def channel(rotations: float) -> float:
        turns = math.log(rope.original_max / (rotations * 2 * math.pi))
        return dim * turns / (2 * math.log(rope.theta))

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(inverse.size) - low) / width, 0, 1)
    return inverse / rope.factor * ramp + inverse * (1 - ramp)


def frequencies(rope: RopeConfig, head_dim: int, length: jax.Array) -> jax.Array:
    """Returns the inverse frequencies of each row.

    `dynamic` and `longrope` depend on how long the text is; every row uses its own length,
    so that a row does not depend on its neighbours (`transformers` takes the batch's longest).

    Args:
      rope: the scaling.
      head_dim: channels of a head, D.
      length: highest position + 1 of each row, `[B]`.

    Returns:
      Inverse frequencies, `[B, D'/2]`, or `[1, D'/2]` when they do not depend on the length; D'
      of the D channels are rotated.
    """
    rotated = int(head_dim * rope.partial)
    exponent = np.arange(0, rotated, 2, dtype=np.float64) / rotated
    inverse = 1.0 / rope.theta**exponent
    if rope.kind == "dynamic":
        limit = rope.original_max
        stretch = rope.factor * jnp.maximum(length, limit) / limit - (rope.factor - 1)
        theta = rope.theta * stretch ** (rotated / (rotated - 2))
        return 1.0 / theta[:, None] ** exponent.astype(np.float32)
    if rope.kind == "longrope":
        short, long = (inverse / np.asarray(f) for f in (rope.short_factor, rope.long_factor))
        is_long = (length > rope.original_max)[:, None]
        return jnp.where(is_long, long.astype(np.float32), short.astype(np.float32))
    if rope.kind == "linear":
        inverse = inverse / rope.factor
    elif rope.kind == "llama3":
        inverse = _llama3(inverse, rope)
    elif rope.kind == "yarn":
        inverse = _yarn(inverse, rope)
    return jnp.asarray(inverse[None], jnp.float32)


def tables(rope: RopeConfig, head_dim: int, positions: jax.Array) -> jax.Array:
    """Returns cosine and sine of every position, `[2, B, T, D'/2]`, for positions `[B, T]`; D' channels are rotated."""
    inverse = frequencies(rope, head_dim, positions.max(axis=-1) + 1)
    angles = positions.astype(jnp.float32)[..., None] * inverse[:, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)]) * rope.attention_factor


def identity(table: jax.Array) -> jax.Array:
    """Returns the table that rotates nothing, shaped like another."""
    return jnp.zeros_like(table).at[0].set(1)


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotates the first D' channels of `x` `[B, T, H, D]` by a table `[2, B, T, D'/2]` (halves, not pairs)."""
    cos, sin = table.astype(x.dtype)[:, :, :, None]
    half = table.shape[-1]
    a, b, rest = jnp.split(x, (half, 2 * half), axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
