"""Generation: one compiled prefill a prompt, one compiled decode loop for all its samples."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from pairgrpo_jax.lm.models import cache as kv_cache
from pairgrpo_jax.lm.models import sampling as sampling_lib
from pairgrpo_jax.lm.models.attention import KV
from pairgrpo_jax.lm.models.cache import Cache
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.decoder import Decoder, run, unembed
from pairgrpo_jax.lm.models.model import Model, default_positions
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.placement import put_rows

_log = logging.getLogger("pairgrpo_jax.lm")


class Generation(NamedTuple):
    """K completions of each of B prompts.

    Attributes:
      tokens: `[B, K, T]`, the model's pad id (or 0) after each completion's end.
      lengths: `[B, K]`, the stop token included.
      logp: `[B, K, T]`, of each token under the distribution it was drawn from; 0 at padding.
      keys: `[B, K]`, the PRNG key of each completion: it gives the same text in any batch.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logp: np.ndarray
    keys: jax.Array


class _State(NamedTuple):
    """The decode loop; R = B K rows. The last token drawn has not been fed yet."""

    cache: Cache
    tokens: jax.Array  # [R, T]
    logp: jax.Array  # [R, T]
    step: jax.Array  # tokens drawn so far
    lengths: jax.Array  # [R]
    done: jax.Array  # [R]


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    key: jax.Array,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    stop_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    lora: Any = None,
    on_tokens: Callable[[np.ndarray, np.ndarray], None] | None = None,
    rows: NamedSharding | None = None,
) -> Generation:
    """Samples completions.

    A prompt is run once, whatever the number of samples, and its keys and values are stored
    once. Shapes are rounded up so that few of them compile; each compilation is logged (INFO)
    by the logger `pairgrpo_jax.lm`.

    Args:
      model: the model.
      params: its parameters.
      prompts: B lists of token ids.
      max_new_tokens: T.
      key: one key, split by prompt and sample; or keys `[B, K]`, one for each completion.
      num_samples: K completions of each prompt.
      temperature: see `Sampling`, as the next three.
      top_k: keep the most likely tokens.
      top_p: keep a nucleus.
      min_p: keep tokens likely enough relative to the first.
      stop_ids: tokens that end a completion; the model's end-of-sequence ids by default.
      stop_strings: texts that end a completion, whose last token is the one that completes
        the text; needs a tokenizer.
      lora: variables of `lora.variables`.
      on_tokens: called with tokens `[B, K, T]` and lengths `[B, K]` every few steps.
      rows: splits prompts, and the completions of each, over the devices of a mesh; needed where
        `params` live on one.

    Raises:
      ValueError: for no prompt, an empty prompt, an id outside the vocabulary, a text longer
        than the model's context, or a number out of range.
    """
    chosen = Sampling(temperature, top_k, top_p, min_p)
    sampling_lib.check(chosen)
    _check_prompts(model.config, prompts, max_new_tokens, num_samples)
    if stop_strings and model.tokenizer is None:
        raise ValueError("stop_strings: the model has no tokenizer to find them with")
    stops = model.config.eos_ids if stop_ids is None else tuple(stop_ids)
    keys = row_keys(key, len(prompts), num_samples)
    tokens, lengths = _pad_prompts(prompts, 1 if rows is None else rows.num_devices)
    extra = jnp.broadcast_to(keys[:1], (len(tokens) - len(keys), num_samples))
    settings = (chosen, np.asarray(stops or (-1,), np.int32), jnp.concatenate([keys, extra]).reshape(-1))
    real = jnp.arange(len(tokens)) < len(prompts)
    if rows is not None:
        tokens, lengths, real = put_rows((tokens, lengths, real), rows)
    slots = bucket(max_new_tokens, 32)
    state = _prefill(model.decoder, slots, params, tokens, lengths, real, settings, lora)
    every = 8 if stop_strings or on_tokens else max_new_tokens
    view = functools.partial(_outputs, shape=(len(tokens), num_samples), count=len(prompts))
    while True:
        if stop_strings:
            state = _stop_at_strings(model.tokenizer, state, stop_strings)
        if on_tokens is not None:
            on_tokens(*view(state)[:2])
        if int(state.step) >= max_new_tokens or bool(state.done.all()):
            break
        limit = np.int32(min(int(state.step) + every, max_new_tokens))
        state = _decode(model.decoder, params, state, limit, settings, lora)
    tokens, lengths, logp = view(state)
    tokens, logp = tokens[..., :max_new_tokens], logp[..., :max_new_tokens]
    past_end = np.arange(max_new_tokens) >= lengths[..., None]
    tokens = np.where(past_end, model.config.pad_id or 0, tokens)
    return Generation(tokens, lengths, np.where(past_end, 0.0, logp), keys)


def row_keys(key: jax.Array, prompts: int, samples: int) -> jax.Array:
    """Returns typed keys `[B, K]`; a row's key depends on its own two indices only."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.shape == (prompts, samples):
        return key
    if key.shape != ():
        raise ValueError(f"key: shape {key.shape}, expected one key or ({prompts}, {samples})")
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    by_prompt = fold(key, jnp.arange(prompts))
    return jax.vmap(fold, (0, None))(by_prompt, jnp.arange(samples))


def bucket(n: int, unit: int) -> int:
    """Rounds up to multiples of `unit`, or of an eighth to a quarter of n where that is more."""
    unit = max(unit, 1 << max(n.bit_length() - 3, 0))
    return -(-n // unit) * unit


def _check_prompts(config: ModelConfig, prompts: Any, new: int, samples: int) -> None:
    if new < 1 or samples < 1:
        raise ValueError(f"max_new_tokens={new} and num_samples={samples} must be positive")
    if len(prompts) == 0:
        raise ValueError("prompts: an empty batch")
    limit, rope = config.max_positions, config.rope
    if rope is not None and rope.by_length and rope.kind == "longrope":
        limit = rope.original_max  # beyond it, longrope would turn the keys already cached; so does dynamic, slowly
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts[{i}]: an empty prompt; give at least one token")
        if len(prompt) + new > limit:
            total = f"{len(prompt)} + max_new_tokens={new}"
            raise ValueError(f"prompts[{i}]: {total} tokens exceed the context of {limit}")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(f"prompts[{i}]: ids outside the vocabulary of {config.vocab_size}")


def _pad_prompts(prompts: Sequence[Sequence[int]], multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns right-padded tokens `[B', P]` and lengths `[B']`, both sizes rounded up, B' to a multiple."""
    rows = -(-bucket(len(prompts), 1) // multiple) * multiple
    tokens = np.zeros((rows, bucket(max(map(len, prompts)), 32)), np.int32)
    lengths = np.ones(rows, np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
    return tokens, lengths


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(decoder: Decoder, slots: int, params, tokens, lengths, real, settings, lora) -> _State:
    """Runs the prompts `[B, P]` and draws the first token of every completion."""
    samples = settings[2].size // len(tokens)
    _log.info("compiling prefill: %d prompts of %d tokens, %d samples", *tokens.shape, samples)
    positions = default_positions(tokens.shape, lengths)
    hidden, prompt = run(decoder, params, tokens, positions, lora=lora, method="hidden")
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = jnp.repeat(unembed(decoder, params, last, lora), samples, axis=0)
    rows = len(tokens) * samples
    dtype = decoder.dtype
    prompt = KV(prompt.k.astype(dtype), prompt.v.astype(dtype), positions)
    state = _State(
        kv_cache.empty(decoder.config, rows, slots, dtype, prompt),
        jnp.zeros((rows, slots), jnp.int32),
        jnp.zeros((rows, slots), jnp.float32),
        jnp.int32(0),
        jnp.zeros(rows, jnp.int32),
        ~jnp.repeat(real, samples),
    )
    return _draw_next(state, logits, settings)


def _draw_next(state: _State, logits: jax.Array, settings: tuple) -> _State:
    """Draws each row's next token from logits `[R, V]` and records it."""
    chosen, stops, keys = settings
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
    greedy = jnp.asarray(chosen.temperature) == 0
    token, logp = sampling_lib.draw(step_keys, sampling_lib.transform(logits, chosen), greedy)
    return state._replace(
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, 1),
        logp=jax.lax.dynamic_update_slice_in_dim(state.logp, logp[:, None], state.step, 1),
        step=state.step + 1,
        lengths=state.lengths + ~state.done,
        done=state.done | jnp.isin(token, stops),
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _decode(decoder: Decoder, params, state: _State, limit, settings, lora) -> _State:
    """Draws tokens until `limit` of them, or until every row is done."""
    _log.info("compiling decode: %d rows, %d new tokens at most", *state.tokens.shape)
    prompt = state.cache.shared
    assert prompt is not None
    starts = jnp.repeat(prompt.positions.max(-1) + 1, len(state.tokens) // len(prompt.positions))

    def step(state: _State) -> _State:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        positions = (starts + state.step - 1)[:, None]
        places = state.cache.places()
        hidden, new = run(decoder, params, token, positions, places, lora, method="hidden")
        state = state._replace(cache=kv_cache.append(state.cache, new))
        return _draw_next(state, unembed(decoder, params, hidden[:, 0], lora), settings)

    return jax.lax.while_loop(lambda s: (s.step < limit) & ~s.done.all(), step, state)


def _outputs(state: _State, shape: tuple[int, int], count: int) -> list[np.ndarray]:
    """Returns tokens, lengths and log-probabilities of the real prompts, `[B, K, ...]`."""
    arrays = processes.fetch((state.tokens, state.lengths, state.logp))
    return [x.reshape(*shape, *x.shape[1:])[:count] for x in arrays]


def _stop_at_strings(tokenizer: Any, state: _State, stops: Sequence[str]) -> _State:
    """Ends, on the host, the rows whose text holds one of the stop strings."""
    tokens, lengths, done = (np.array(x) for x in (state.tokens, state.lengths, state.done))
    for row in np.flatnonzero(lengths > 0):
        end = _string_end(tokenizer, tokens[row, : lengths[row]].tolist(), stops)
        if end is not None:
            lengths[row], done[row] = end, True
    return state._replace(lengths=jnp.asarray(lengths), done=jnp.asarray(done))


def _string_end(tokenizer: Any, ids: list[int], stops: Sequence[str]) -> int | None:
    """Returns how many tokens it takes to spell the first stop string, or None."""

    def found(n: int) -> bool:
        text = tokenizer.decode(ids[:n])
        return any(stop in text for stop in stops)

    if not found(len(ids)):
        return None
    low, high = 0, len(ids)  # text only grows: bisect
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
