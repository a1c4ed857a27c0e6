"""SentencePiece vocabularies of GGUF files (Llama 2, Mistral, Phi-3, Gemma) as `tokenizers` objects."""

import math
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"


def build(tokens: list[str], types: list[int], fields: dict[str, Any], where: str) -> Tokenizer:
    """Rebuilds a byte-pair SentencePiece model (https://arxiv.org/abs/1808.06226) from the scores of its pieces.

    The pair whose piece has the highest score is merged first; characters without a piece become
    bytes. `tokenizer.ggml.add_space_prefix` (true where it is absent) puts a space before a text and
    before what follows a control token, as llama.cpp and `transformers` (`legacy`) do. As in the latter, a space that
    is there takes its place, except for Phi-3.

    Args:
      tokens: the pieces.
      types: the kind of each piece.
      fields: metadata of the file.
      where: the file, for error messages.

    Raises:
      ValueError: naming the field that is malformed.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(f"{where}: field 'tokenizer.ggml.tokens': a token appears twice")
    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(map(_is_finite, scores)):
        raise ValueError(f"{where}: field 'tokenizer.ggml.scores': expected {len(tokens)} finite numbers")
    unknown = next((token for token, kind in zip(tokens, types) if kind == UNKNOWN), None)
    has_bytes = all(f"<0x{i:02X}>" in vocab for i in range(256))
    if unknown is None and not has_bytes:
        raise ValueError(f"{where}: field 'tokenizer.ggml.token_type': no unknown token, and not all 256 bytes")
    merges: list[Any] = _merges(vocab, types, scores)
    model: Any = models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True) is True
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    escape = normalizers.Replace(" ", _SPACE)
    if not prefix:
        tokenizer.normalizer = escape
    elif fields.get("general.architecture") == "phi3":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=False)
    return tokenizer


def _is_finite(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _merges(vocab: dict[str, int], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Returns the pairs that make up the pieces of text, best score first, ordered as in `transformers`."""
    pairs = []
    for i, piece in enumerate(vocab):
        if types[i] not in (NORMAL, USER_DEFINED):
            continue
        halves = ((piece[:k], piece[k:]) for k in range(1, len(piece)))
        known = [(a, b) for a, b in halves if a in vocab and b in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        pairs += [(scores[i], len(a), len(b), a, b) for a, b in known]
    pairs.sort(key=lambda x: x[:3], reverse=True)
    return [(a, b) for *_, a, b in pairs]
