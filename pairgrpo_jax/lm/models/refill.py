"""Continuous batching: a fixed number of slots, each of which takes the next completion when its own has ended.

A text depends on its own key alone, so it is the one that the whole batch at once gives. All slots write their keys and
values at the same place of a ring, which keeps the cache in one piece of memory; positions tell what a slot has written
since its completion began. Each slot has a copy of its prompt's keys and values.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.lm.models import cache as kv_cache
from pairgrpo_jax.lm.models import sampling as sampling_lib
from pairgrpo_jax.lm.models.attention import KV
from pairgrpo_jax.lm.models.cache import Cache
from pairgrpo_jax.lm.models.decoder import Decoder, run, unembed

_log = logging.getLogger("pairgrpo_jax.lm")
_FEWEST = 8  # slots: below, a step costs no less


class Texts(NamedTuple):
    """The N completions, as far as they are drawn."""

    tokens: jax.Array  # [N, T]
    logp: jax.Array  # [N, T]
    lengths: jax.Array  # [N]
    done: jax.Array  # [N]


class Slots(NamedTuple):
    """S places to decode at; the last token drawn has not been fed yet."""

    cache: Cache  # `own` is the ring, `shared` the prompt of each slot
    row: jax.Array  # [S], the completion that is decoded there, N for none
    step: jax.Array  # [S], its tokens drawn so far
    last: jax.Array  # [S], the last of them
    start: jax.Array  # [S], the length of its prompt


class Work(NamedTuple):
    """What is the same for all slots and steps."""

    params: object
    lora: object
    settings: tuple  # the sampling transform, stop ids [E], and the key of each completion, [N]
    limit: jax.Array  # tokens of a completion at most
    prompts: KV  # of all B prompts, [L, B, H, P, D]


def decode(
    decoder: Decoder, work: Work, texts: Texts, slots: int, watch: Callable[[Texts], Texts], every: int
) -> Texts:
    """Draws all completions to their end.

    Args:
      decoder: the model.
      work: parameters, prompts and settings.
      texts: with the first token of each.
      slots: S, how many are decoded at once.
      watch: called every few steps; it may end completions, by `done` and `lengths`.
      every: how many steps.
    """
    count = len(texts.lengths)
    queue = np.flatnonzero(~np.asarray(texts.done)).tolist()
    state = _empty(decoder, min(slots, count), texts.tokens.shape[1], work.prompts, count)
    while True:
        texts = watch(texts)
        rows, done = np.asarray(state.row), np.append(np.asarray(texts.done), True)
        queue = [row for row in queue if not done[row]]
        free = np.flatnonzero(done[rows])
        if len(free) == len(rows) and not queue:
            return texts
        if queue and len(free):
            state, queue = _fill(state, texts, work, free, queue)
        elif not queue and len(rows) >= 2 * _FEWEST and len(rows) - len(free) <= len(rows) // 2:
            state = _narrow(state, jnp.asarray(np.argsort(done[rows], kind="stable")[: len(rows) // 2]))
        leave = len(state.row) - 1 if queue else len(state.row) // 2 if len(state.row) >= 2 * _FEWEST else 0
        state, texts = _advance(decoder, work, state, texts, jnp.int32(leave), jnp.int32(every))


def _empty(decoder: Decoder, slots: int, ring: int, prompts: KV, count: int) -> Slots:
    width = prompts.positions.shape[1]
    shape = (prompts.k.shape[0], slots, *prompts.k.shape[2:])
    free = jnp.full((slots, width), -1, jnp.int32)
    shared = KV(jnp.zeros(shape, prompts.k.dtype), jnp.zeros(shape, prompts.v.dtype), free)
    cache = kv_cache.empty(decoder.config, slots, ring, decoder.dtype, shared)
    nothing = jnp.zeros(slots, jnp.int32)
    return Slots(cache, nothing + count, nothing + 1, nothing, nothing + 1)


def _fill(state: Slots, texts: Texts, work: Work, free: np.ndarray, queue: list[int]) -> tuple[Slots, list[int]]:
    """Puts the next completions of the queue into the free slots."""
    taken = queue[: len(free)]
    pad = (0, len(state.row) - len(taken))
    slots, rows = (jnp.asarray(np.pad(np.asarray(x, np.int32), pad)) for x in (free[: len(taken)], taken))
    return _put(state, texts, work.prompts, slots, rows, jnp.int32(len(taken))), queue[len(taken) :]


def _prompts(state: Slots) -> KV:
    assert state.cache.shared is not None
    return state.cache.shared


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: Slots, texts: Texts, prompts: KV, slots: jax.Array, rows: jax.Array, count: jax.Array) -> Slots:
    samples = len(texts.lengths) // len(prompts.positions)
    starts = prompts.positions.max(-1) + 1

    def put(i: jax.Array, state: Slots) -> Slots:
        slot, row = slots[i], rows[i]
        prompt, own = row // samples, state.cache.own

        def copy(to: jax.Array, of: jax.Array, axis: int) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(of, prompt, 1, axis)
            return jax.lax.dynamic_update_slice_in_dim(to, part, slot, axis)

        shared = KV(*(copy(to, of, axis) for to, of, axis in zip(_prompts(state), prompts, (1, 1, 0))))
        cache = state.cache._replace(own=own._replace(positions=own.positions.at[slot].set(-1)), shared=shared)
        fresh = (row, 1, texts.tokens[row, 0], starts[prompt])
        return Slots(cache, *(x.at[slot].set(value) for x, value in zip(state[1:], fresh)))

    return jax.lax.fori_loop(0, count, put, state)


@jax.jit
def _narrow(state: Slots, kept: jax.Array) -> Slots:
    """The slots `kept` alone."""

    def take(kv: KV) -> KV:
        return KV(kv.k[:, kept], kv.v[:, kept], kv.positions[kept])

    cache = state.cache._replace(own=take(state.cache.own), shared=take(_prompts(state)))
    return Slots(cache, *(x[kept] for x in state[1:]))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(2, 3))
def _advance(decoder: Decoder, work: Work, state: Slots, texts: Texts, leave, every) -> tuple[Slots, Texts]:
    """Draws tokens until at most `leave` slots are still at work, or `every` tokens in each."""
    slots, (count, _) = len(state.row), texts.tokens.shape
    _log.info("compiling decode: %d slots, %d new tokens at most", slots, texts.tokens.shape[1])
    ring = state.cache.own.positions.shape[1]
    chosen, stops, keys = work.settings
    greedy = jnp.asarray(chosen.temperature) == 0

    def active(state: Slots, texts: Texts) -> jax.Array:
        return ~texts.done.at[state.row].get(mode="fill", fill_value=True)

    def step(carry: tuple) -> tuple:
        state, texts, steps = carry
        alive = active(state, texts)
        positions = (state.start + state.step - 1)[:, None]
        cache = state.cache._replace(next=state.cache.next % ring)
        hidden, new = run(
            decoder, work.params, state.last[:, None], positions, cache.places(), work.lora, method="hidden"
        )
        logits = sampling_lib.transform(unembed(decoder, work.params, hidden[:, 0], work.lora), chosen)
        own = jnp.minimum(state.row, count - 1)
        token, logp = sampling_lib.draw(jax.vmap(jax.random.fold_in)(keys[own], state.step), logits, greedy)
        row = jnp.where(alive, state.row, count)  # what is written beyond the last is dropped
        ends = jnp.isin(token, stops) | (state.step + 1 >= work.limit)
        texts = Texts(
            texts.tokens.at[row, state.step].set(token, mode="drop"),
            texts.logp.at[row, state.step].set(logp, mode="drop"),
            texts.lengths.at[row].add(1, mode="drop"),
            texts.done.at[row].max(ends, mode="drop"),
        )
        state = Slots(kv_cache.append(cache, new), state.row, state.step + alive, token, state.start)
        return state, texts, steps + 1

    def more(carry: tuple) -> jax.Array:
        state, texts, steps = carry
        return (steps < every) & (active(state, texts).sum() > leave)

    state, texts, _ = jax.lax.while_loop(more, step, (state, texts, jnp.int32(0)))
    return state, texts
