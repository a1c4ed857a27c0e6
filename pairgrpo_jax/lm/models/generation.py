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
from pairgrpo_jax.lm.models import layout, refill
from pairgrpo_jax.lm.models import sampling as sampling_lib
from pairgrpo_jax.lm.models.cache import Cache
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.decoder import Decoder, run, unembed
from pairgrpo_jax.lm.models.model import Model, default_positions
from pairgrpo_jax.lm.models.places import KV
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.placement import filled_up, put_rows

_log = logging.getLogger("pairgrpo_jax.lm")
_PIECE = 8  # prompts that are read together where rows are refilled


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


class DecodeState(NamedTuple):
    """The decode loop over R = B K rows. The last token drawn has not been fed yet.

    Attributes:
      cache: what the rows have seen.
      tokens: drawn so far, `[R, T]`.
      logp: of each, `[R, T]`.
      step: tokens drawn of every row.
      lengths: `[R]`, the stop token included.
      done: `[R]`, rows that have ended, or that are none.
    """

    cache: Cache
    tokens: jax.Array
    logp: jax.Array
    step: jax.Array
    lengths: jax.Array
    done: jax.Array


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
    slots: int | None = None,
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
      slots: decode so many completions at once; each that ends makes room for the next, so that
        few long ones do not keep the others waiting. None: all at once. The texts are the same.

    Raises:
      ValueError: for no prompt, an empty prompt, an id outside the vocabulary, a text longer
        than the model's context or across the point where its rope turns all keys (`ModelConfig.room`),
        or a number out of range; for `slots` on a mesh.
    """
    chosen = Sampling(temperature, top_k, top_p, min_p)
    sampling_lib.check(chosen)
    _check_prompts(model.config, prompts, max_new_tokens, num_samples)
    check_slots(slots, rows)
    if not all(stop_strings):
        raise ValueError("stop_strings: an empty text would end every completion; leave it out")
    if stop_strings and model.tokenizer is None:
        raise ValueError("stop_strings: the model has no tokenizer to find them with")
    stops = model.config.eos_ids if stop_ids is None else tuple(stop_ids)
    keys = row_keys(key, len(prompts), num_samples)
    # Refilled, prompts of a length are read together.
    order = np.arange(len(prompts)) if slots is None else np.argsort([len(prompt) for prompt in prompts], kind="stable")
    multiple = 1 if rows is None else rows.num_devices
    if slots is not None and len(prompts) > _PIECE:
        multiple = _PIECE
    tokens, lengths = _pad_prompts([prompts[i] for i in order.tolist()], multiple)
    extra = jnp.broadcast_to(keys[:1], (len(tokens) - len(keys), num_samples))
    row_key = jnp.concatenate([keys[order], extra]).reshape(-1)
    settings = (chosen, np.asarray(stops or (-1,), np.int32), row_key)
    real = jnp.arange(len(tokens)) < len(prompts)
    if rows is not None:
        tokens, lengths, real = put_rows((tokens, lengths, real), rows)
    view = functools.partial(_outputs, shape=(len(tokens), num_samples), places=np.argsort(order))

    def watch(state: Any) -> Any:
        if stop_strings:
            state = _stop_at_strings(model.tokenizer, state, stop_strings)
        if on_tokens is not None:
            on_tokens(*view(state)[:2])
        return state

    every = 8 if stop_strings or on_tokens else max_new_tokens
    inputs = (params, tokens, lengths, real, settings, lora)
    if slots is None:
        state = _whole_batch(model.decoder, inputs, max_new_tokens, watch, every)
    else:
        state = _refilled(model.decoder, inputs, max_new_tokens, watch, every, slots)
    tokens, lengths, logp = view(state)
    tokens, logp = tokens[..., :max_new_tokens], logp[..., :max_new_tokens]
    past_end = np.arange(max_new_tokens) >= lengths[..., None]
    tokens = np.where(past_end, model.config.pad_id or 0, tokens)
    return Generation(tokens, lengths, np.where(past_end, 0.0, logp), keys)


def _whole_batch(decoder: Decoder, inputs: tuple, new: int, watch: Callable, every: int) -> DecodeState:
    """Decodes all rows together, until the last has ended."""
    params, *_, settings, lora = inputs
    state = prefill(decoder, bucket(new, 32), *inputs)
    while True:
        state = watch(state)
        if int(state.step) >= new or bool(state.done.all()):
            return state
        limit = np.int32(min(int(state.step) + every, new))
        state = decode(decoder, params, state, limit, settings, lora)


def _refilled(decoder: Decoder, inputs: tuple, new: int, watch: Callable, every: int, slots: int) -> refill.Texts:
    """Decodes `slots` rows at a time; prompts, sorted by length, are read a few at a time."""
    params, tokens, lengths, real, (chosen, stops, keys), lora = inputs
    samples, parts = len(keys) // len(tokens), []
    for at in range(0, len(tokens), _PIECE):
        piece = slice(at, at + _PIECE)
        width = min(bucket(int(lengths[piece].max()), 32), tokens.shape[1])
        settings = (chosen, stops, keys[at * samples : (at + _PIECE) * samples])
        rows = (tokens[piece, :width], lengths[piece], real[piece])
        parts.append(_read_piece(decoder, (tokens.shape[1], bucket(new, 32)), params, *rows, settings, lora))
    if len(parts) > 1:
        drawn, read = zip(*parts)
        texts = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
        k, v, positions = zip(*read)
        prompts = KV(jnp.concatenate(k, 1), jnp.concatenate(v, 1), jnp.concatenate(positions))
    else:
        texts, prompts = parts[0]
    texts = texts._replace(done=texts.done | (new == 1))
    work = refill.Work(params, lora, (chosen, stops, keys), jnp.int32(new), prompts)
    return refill.decode(decoder, work, texts, slots, watch, every)


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
    return filled_up(n, unit)


def prompt_shape(count: int, longest: int, multiple: int = 1) -> tuple[int, int]:
    """Returns the shape `[B', P]` that `count` prompts are padded to, B' to a multiple of `multiple`."""
    return filled_up(bucket(count, 1), multiple), bucket(longest, 32)


def check_slots(slots: int | None, rows: NamedSharding | None) -> None:
    """Raises ValueError for `slots` of `generate` that cannot be."""
    if slots is not None and slots < 1:
        raise ValueError(f"slots={slots} must be positive, or None to decode all completions at once")
    if slots is not None and rows is not None:
        raise ValueError(f"slots={slots}: completions are not refilled on a mesh; leave it at None")


def _check_prompts(config: ModelConfig, prompts: Any, new: int, samples: int) -> None:
    if new < 1 or samples < 1:
        raise ValueError(f"max_new_tokens={new} and num_samples={samples} must be positive")
    if len(prompts) == 0:
        raise ValueError("prompts: an empty batch")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts[{i}]: an empty prompt; give at least one token")
        if new > (room := config.room(len(prompt))):
            left = f"; at most {room} can follow" if room > 0 else ""
            total, limit = f"{len(prompt)} + max_new_tokens={new}", len(prompt) + room
            switch = config.rope is not None and config.rope.by_length and limit == config.rope.original_max
            what = f"cross {limit}, where rope_scaling turns all keys" if switch else f"exceed the context of {limit}"
            raise ValueError(f"prompts[{i}]: {total} tokens {what}{left}")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(f"prompts[{i}]: ids outside the vocabulary of {config.vocab_size}")


def _pad_prompts(prompts: Sequence[Sequence[int]], multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns right-padded tokens `[B', P]` and lengths `[B']`, both sizes rounded up, B' to a multiple."""
    tokens = np.zeros(prompt_shape(len(prompts), max(map(len, prompts)), multiple), np.int32)
    lengths = np.ones(len(tokens), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
    return tokens, lengths


@functools.partial(jax.jit, static_argnums=(0, 1))
def prefill(decoder: Decoder, slots: int, params, tokens, lengths, real, settings, lora) -> DecodeState:
    """Runs prompts and draws the first token of every completion; compiled.

    Args:
      decoder: of the model.
      slots: T, the longest completion that there is room for.
      params: of the model.
      tokens: `[B, P]`, right-padded.
      lengths: `[B]`.
      real: `[B]`, false for rows that only fill the batch up.
      settings: `(Sampling, stop ids, keys [R])`.
      lora: variables of `lora.variables`, or None.
    """
    samples = settings[2].size // len(tokens)
    prompt, logits = _read(decoder, params, tokens, lengths, samples, lora)
    cache = kv_cache.empty(decoder.config, len(tokens) * samples, slots, decoder.dtype, prompt)
    cache = cache._replace(own=layout.placed(cache.own, decoder.mesh))
    return _draw_next(_start(cache, slots, jnp.repeat(real, samples)), logits, settings)


def _read(decoder: Decoder, params, tokens, lengths, samples: int, lora) -> tuple[KV, jax.Array]:
    """Runs the prompts `[B, P]`: their keys and values, and the first logits of every completion `[R, V]`."""
    _log.info("compiling prefill: %d prompts of %d tokens, %d samples", *tokens.shape, samples)
    positions = default_positions(tokens.shape, lengths)
    hidden, prompt = run(decoder, params, tokens, positions, lora=lora, method="hidden")
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    whole = layout.vocabulary(params, decoder.mesh)
    logits = layout.split(jnp.repeat(unembed(decoder, whole, last, lora), samples, axis=0), decoder.mesh)
    dtype = decoder.dtype
    return layout.placed(KV(prompt.k.astype(dtype), prompt.v.astype(dtype), positions), decoder.mesh), logits


def _start(cache: Any, slots: int, real: jax.Array) -> DecodeState:
    """Rows `[R]` of which nothing is drawn yet; those that are not real are done."""
    shape = (len(real), slots)
    drawn = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return DecodeState(cache, *drawn, jnp.int32(0), jnp.zeros(len(real), jnp.int32), ~real)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read_piece(decoder: Decoder, sizes: tuple[int, int], params, tokens, lengths, real, settings, lora) -> tuple:
    """The first token of every completion of some prompts, and their keys and values padded to `sizes[0]` places."""
    (width, slots), samples = sizes, settings[2].size // len(tokens)
    prompt, logits = _read(decoder, params, tokens, lengths, samples, lora)
    drawn = _draw_next(_start(None, slots, jnp.repeat(real, samples)), logits, settings)
    more = width - tokens.shape[1]
    k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))) for x in prompt[:2])
    positions = jnp.pad(prompt.positions, ((0, 0), (0, more)), constant_values=-1)
    return refill.Texts(drawn.tokens, drawn.logp, drawn.lengths, drawn.done), KV(k, v, positions)


def _draw_next(state: DecodeState, logits: jax.Array, settings: tuple) -> DecodeState:
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
def decode(decoder: Decoder, params, state: DecodeState, limit, settings, lora) -> DecodeState:
    """Draws tokens until `limit` of each row, or until every row is done; compiled. It takes the memory of `state`."""
    _log.info("compiling decode: %d rows, %d new tokens at most", *state.tokens.shape)
    prompt = state.cache.shared
    assert prompt is not None
    starts = jnp.repeat(prompt.positions.max(-1) + 1, len(state.tokens) // len(prompt.positions))

    def step(state: DecodeState) -> DecodeState:
        token = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        positions = (starts + state.step - 1)[:, None]
        places = state.cache.places()
        hidden, new = run(decoder, params, token, positions, places, lora, method="hidden")
        state = state._replace(cache=kv_cache.append(state.cache, new))
        logits = layout.split(unembed(decoder, params, hidden[:, 0], lora), decoder.mesh)
        return _draw_next(state, logits, settings)

    return jax.lax.while_loop(lambda s: (s.step < limit) & ~s.done.all(), step, state)


def _outputs(state: Any, shape: tuple[int, int], places: np.ndarray) -> list[np.ndarray]:
    """Returns tokens, lengths and log-probabilities of the prompts at `places`, `[B, K, ...]`."""
    arrays = processes.fetch((state.tokens, state.lengths, state.logp))
    return [x.reshape(*shape, *x.shape[1:])[places] for x in arrays]


def _stop_at_strings(tokenizer: Any, state: Any, stops: Sequence[str]) -> Any:
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
