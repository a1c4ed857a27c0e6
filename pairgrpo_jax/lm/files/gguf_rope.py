"""The rotary embedding of a GGUF file as fields of a `config.json`: scalings, divisors, partial rotation."""

from typing import Any

from pairgrpo_jax.lm.files.gguf_parts import GGUFModel

DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


def read_rope(file: GGUFModel, arch: str, own: dict[str, Any]) -> dict[str, Any]:
    """Returns `rope_scaling`, and what Phi-3 has beside it, where the file has any.

    Args:
      file: the open file.
      arch: the architecture, before the names of its fields.
      own: the fields of the architecture, without its name.

    Raises:
      ValueError: naming file and field, for a scaling that is incomplete or not supported.
    """

    def error(name: str, why: str) -> ValueError:
        return ValueError(f"{file.where}: field '{arch}.{name}' = {own.get(name)!r}: {why}")

    kind, factor = own.get("rope.scaling.type", "none"), own.get("rope.scaling.factor", 1.0)
    if kind == "none" and factor not in (0.0, 1.0):
        raise error("rope.scaling.factor", f"without '{arch}.rope.scaling.type'")
    found: dict[str, Any] = {}
    if arch == "phi3":
        original = own.get("rope.scaling.original_context_length", own["context_length"])  # old files lack it
        found["original_max_position_embeddings"] = original
        head_dim = own["embedding_length"] // own["attention.head_count"]
        found["partial_rotary_factor"] = own.get("rope.dimension_count", head_dim) / head_dim
        if LONG in file or SHORT in file:
            return found | {"rope_scaling": _longrope(file, own)}
    elif own.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise error("rope.scaling.attn_factor", "only 1 is supported")
    if DIVISORS in file:
        return found | {"rope_scaling": _divisors(file, arch)}
    if kind == "none":
        return found
    if kind not in ("linear", "yarn") or arch == "phi3":
        raise error(
            "rope.scaling.type", "unsupported" if kind != "longrope" else f"without the tensors {LONG}, {SHORT}"
        )
    return found | {"rope_scaling": _scaling(kind, own)}


def _scaling(kind: str, own: dict[str, Any]) -> dict[str, Any]:
    scaling = {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = own.get("rope.scaling.original_context_length")
        betas = {name: own.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        scaling |= {name: value for name, value in betas.items() if value is not None}
    return scaling


def _longrope(file: GGUFModel, own: dict[str, Any]) -> dict[str, Any]:
    """Phi-3's scaling: two divisors a channel, and a factor of cosine and sine that is 1 where the file has none."""
    missing = [name for name in (LONG, SHORT) if name not in file]
    if missing:
        raise ValueError(f"{file.where}: missing tensor '{missing[0]}'; the file has the other factors of longrope")
    return {
        "rope_type": "longrope",
        "short_factor": file.read(SHORT).ravel().tolist(),
        "long_factor": file.read(LONG).ravel().tolist(),
        "attention_factor": own.get("rope.scaling.attn_factor", 1.0),
    }


def _divisors(file: GGUFModel, arch: str) -> dict[str, Any]:
    """Llama 3's scaling comes as one divisor a channel, which is longrope without a switch."""
    divisors = file.read(DIVISORS).ravel().tolist()
    return {
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": file.fields.get(f"{arch}.context_length"),
    }
