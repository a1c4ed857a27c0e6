"""What a decoder is made of: one frozen description, read from a Hugging Face config."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from pairgrpo_jax.lm.models.neutral import is_neutral

ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_LIMIT = 1 << 24  # no real model has a dimension beyond 16 million


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one kind of layer, see `rope.frequencies` for the scaling types.

    `partial` is the share of a head's channels, the first ones, that is rotated (Phi-4-mini).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_max: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    partial: float = 1.0

    @property
    def by_length(self) -> bool:
        """Whether a text longer than `original_max` has other frequencies, at all of its positions."""
        return self.kind == "dynamic" or (self.kind == "longrope" and self.short_factor != self.long_factor)

    def settled(self, length: Any) -> Any:
        """Whether no more tokens turn the keys of a text of `length`, a number or an array.

        Beyond its original context all keys of longrope are rotated alike; those of `dynamic` turn with every token.
        """
        return (length > self.original_max) & (self.kind == "longrope")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer; the differences between families are fields.

    `windows` holds one entry a layer: 0 for full attention, else the number of positions
    seen, the token itself included. `local_rope` is used by the layers that have a window
    (Gemma 3); `rope=None` means learned positions (GPT-2); the layers listed in `nope_layers`
    have no position at all (SmolLM3, https://arxiv.org/abs/2501.18795). Any of `eos_ids` ends a
    text; `reply_end` is the one written after a reply in training, where it is known.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    windows: tuple[int, ...]
    rope: RopeConfig | None
    local_rope: RopeConfig | None = None
    nope_layers: tuple[int, ...] = ()
    activation: str = "silu"
    norm: str = "rms"  # "rms", "rms_plus_one" (Gemma: weight + 1) or "layer"
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    qk_norm: str = ""  # of queries and keys: "head" by head (Qwen3), "whole" across heads (OLMo 2)
    pre_norms: bool = True
    post_norms: bool = False
    tied: bool = False
    embed_scale: float = 1.0
    attention_scales: tuple[float, ...] = ()
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    reply_end: int | None = None
    pad_id: int | None = None

    @property
    def context(self) -> int:
        """The longest text, tokens, that may be run in pieces: as a prompt and then a completion.

        Beyond the original context `dynamic` and `longrope` rotate all keys by the whole text's length, which the keys
        of a prompt that was run before do not know. Yarn stretches the original one, whatever the config's maximum.
        """
        if self.rope is None:
            return self.max_positions
        if self.rope.kind == "yarn":
            return max(self.max_positions, int(self.rope.original_max * self.rope.factor))
        return self.rope.original_max if self.rope.by_length else self.max_positions

    def room(self, prompt: int) -> int:
        """How many tokens may follow a prompt of so many, run before them."""
        settled = self.rope is not None and self.rope.settled(prompt)
        return (self.max_positions if settled else self.context) - prompt


def check_limits(config: ModelConfig, prompt_tokens: int, completion_tokens: int) -> None:
    """Raises ValueError if prompts and completions of up to so many tokens need not fit into the model's context."""
    longest = prompt_tokens + completion_tokens
    if longest > (limit := config.context):
        raise ValueError(f"prompt_tokens + completion_tokens = {longest} exceed the model's context of {limit}")


class FieldReader:
    """Hands out the fields of a config and refuses, by name, those that nobody asked for."""

    def __init__(self, fields: dict[str, Any], where: str, ignore: Iterable[str] = ()):
        self.fields, self.where, self.ignore = fields, where, frozenset(ignore)
        self.read: set[str] = set()

    def error(self, name: str, why: str) -> ValueError:
        """Returns the one error every refused field raises."""
        return ValueError(f"{self.where}: field '{name}' = {self.fields.get(name)!r}: {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the field, or the default where it is absent or null."""
        self.read.add(name)
        value = self.fields.get(name)
        return default if value is None else value

    def typed(self, name: str, kind: type, default: Any = None, ok: Callable = lambda v: True) -> Any:
        """Returns the field if it is of this kind and acceptable; ints pass for floats."""
        value = self.get(name, default)
        value = float(value) if kind is float and type(value) is int and abs(value) < 1 << 1000 else value
        if type(value) is not kind or not ok(value):
            raise self.error(name, f"expected {kind.__name__} in the range this library supports")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """Returns a positive dimension."""
        return self.typed(name, int, default, lambda v: 0 < v <= _LIMIT)

    def choice(self, name: str, allowed: tuple, default: Any = None) -> Any:
        """Returns the field if it is one of the supported values."""
        value = self.get(name, default)
        if value not in allowed:
            raise self.error(name, f"unsupported; supported here: {', '.join(map(str, allowed))}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """Returns a boolean field."""
        return self.typed(name, bool, default)

    def finish(self) -> None:
        """Raises ValueError for fields that nobody asked for, unless they change nothing."""
        known = self.read | self.ignore
        unknown = sorted(k for k, v in self.fields.items() if k not in known and not is_neutral(k, v))
        if unknown:
            listed = ", ".join(f"{k} = {str(self.fields[k])[:60]}" for k in unknown)
            raise ValueError(
                f"{self.where}: fields this library does not implement: {listed}; to load without them: "
                f"--ignore-fields {' '.join(unknown)} (in Python ignore_fields)"
            )


def token_ids(reader: FieldReader, vocab_size: int) -> dict[str, Any]:
    """Returns `bos_id`, `eos_ids` and `pad_id`, each checked against the vocabulary."""
    eos = reader.get("eos_token_id", [])
    ids = {
        "bos_token_id": reader.get("bos_token_id"),
        "pad_token_id": reader.get("pad_token_id"),
    }
    eos = eos if isinstance(eos, list) else [eos]
    for name, group in (("eos_token_id", eos), *((k, [v]) for k, v in ids.items())):
        for i in group:
            # Config classes carry default ids (Gemma's 0, 1, 2) beyond a tiny vocabulary.
            if i is not None and (type(i) is not int or i < -1):
                raise reader.error(name, f"not a token id of a vocabulary of {vocab_size}")
    inside = tuple(i for i in eos if i is not None and 0 <= i < vocab_size)
    keep = {k: v if v is not None and 0 <= v < vocab_size else None for k, v in ids.items()}
    return {"bos_id": keep["bos_token_id"], "pad_id": keep["pad_token_id"], "eos_ids": inside}


def read_heads(reader: FieldReader) -> dict[str, int]:
    """Returns vocabulary, widths and head counts, checked to fit each other."""
    hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    kv_heads = reader.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"does not divide num_attention_heads={heads}")
    layers = reader.typed("num_hidden_layers", int, None, lambda v: 0 < v <= 4096)
    head_dim = reader.size("head_dim", hidden // heads)
    if head_dim % 2:
        raise reader.error("head_dim", f"is odd ({head_dim}); rotary embeddings need pairs")
    return {
        "vocab_size": reader.size("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": reader.size("intermediate_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_positions": _max_positions(reader),
    }


def _max_positions(reader: FieldReader) -> int:
    """Returns the longest text; a file with a linear rope may name it beside the unscaled maximum (Vicuna)."""
    longest, rope = reader.size("max_position_embeddings"), reader.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type") == "linear":
        longest = max(longest, reader.size("max_sequence_length", longest))
    return longest


def same_windows(reader: FieldReader, layers: int, window: int) -> tuple[int, ...]:
    """Returns the window of families whose layers have one and the same; `layer_types` must agree, if it is there."""
    kind = "sliding_attention" if window else "full_attention"
    kinds = reader.get("layer_types", [])
    if not isinstance(kinds, list) or any(x != kind for x in kinds):
        raise reader.error("layer_types", f"with sliding_window = {window or None} all layers are {kind} here")
    return (window,) * layers


def read_windows(reader: FieldReader, layers: int, window: int | None) -> tuple[int, ...]:
    """Returns each layer's window from `layer_types`; 0 is full attention."""
    kinds = reader.get("layer_types", ["full_attention"] * layers)
    allowed = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise reader.error("layer_types", f"expected a list of {layers} entries")
    if any(kind not in allowed for kind in kinds):
        raise reader.error("layer_types", f"supported layer types: {', '.join(allowed)}")
    if "sliding_attention" in kinds and not window:
        raise reader.error("sliding_window", "layer_types has sliding layers, so it must be set")
    return tuple(window or 0 if kind == "sliding_attention" else 0 for kind in kinds)
