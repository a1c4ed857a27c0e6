"""Log-probabilities, entropy and exact KL of completions, without ever holding `[B, T, V]`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from pairgrpo_jax.lm.models import layout
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.decoder import Decoder, run, unembed
from pairgrpo_jax.lm.models.model import Model, default_positions
from pairgrpo_jax.lm.models.sampling import Sampling, check, transform


class Policy(NamedTuple):
    """A model with the parameters it runs with; LoRA variables where it has them."""

    model: Model
    params: Any
    lora: Any = None


class Scores(NamedTuple):
    """Per-token scores of completions, `[B, K, T]` each, 0 at padding.

    Attributes:
      logp: log-probability of each token.
      entropy: of the distribution each token came from, in nats.
      kl: exact KL(policy || reference) of the next-token distributions, or None.
    """

    logp: jax.Array
    entropy: jax.Array
    kl: jax.Array | None


def score(
    policy: Policy,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    sampling: Sampling | None = None,
    reference: Policy | None = None,
    kept: jax.Array | None = None,
    chunk: int = 256,
    dropout_key: jax.Array | None = None,
) -> Scores:
    """Scores K completions of each of B prompts; a prompt is run once for its K completions.

    Hidden states of the completions alone are projected to the vocabulary, `chunk` positions
    at a time, and projected again in the backward pass: `[chunk, V]` is the largest array.

    Args:
      policy: what to score with; differentiable in its `params` and `lora`.
      prompts: right-padded tokens `[B, P]`.
      prompt_lengths: `[B]`.
      completions: right-padded tokens `[B, K, T]`.
      lengths: `[B, K]`.
      sampling: `logp` and `entropy` are those of the distribution after this transform, as
        `generate` reports them; None leaves the model's own.
      reference: model to take the KL to; no gradient goes into it. The KL is between the
        distributions at the temperature of `sampling`, before top-k, top-p and min-p.
      kept: of `kept_tokens`; all distributions are then those among these tokens alone.
      chunk: positions projected at a time.
      dropout_key: turns on LoRA's dropout.

    Returns:
      Scores `[B, K, T]`.

    Raises:
      ValueError: if shapes do not fit, or the vocabularies of the two models differ. Outside `jit`
        also for a number of `sampling` out of range, an empty prompt, lengths or ids out of range,
        and for texts beyond learned positions (GPT-2), or whose completion takes them to where their
        rope turns all keys (dynamic, longrope): these give NaN under `jit`.
    """
    batch = (prompts, prompt_lengths, completions, lengths)
    _check(*batch, policy, reference)
    if sampling is not None and not _traced(sampling):
        check(sampling)
    _check_values(*batch, [x.model.config for x in (policy, reference) if x is not None])
    hidden = _hidden(policy, *batch, dropout_key)
    if reference is None:
        return score_hidden(policy, hidden, completions, lengths, sampling=sampling, kept=kept, chunk=chunk)
    other = Policy(reference.model, *jax.lax.stop_gradient((reference.params, reference.lora)))
    hidden = [hidden, jax.lax.stop_gradient(_hidden(other, *batch))]
    return _scores([policy, other], hidden, completions, lengths, sampling, kept, chunk)


def score_hidden(
    policy: Policy,
    hidden: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    sampling: Sampling | None = None,
    kept: jax.Array | None = None,
    chunk: int = 256,
    frozen: bool = False,
) -> Scores:
    """Scores completions from the hidden states `[B, K, T, d]` of `completion_hidden`; see `score`.

    Args:
      policy: see `score`, as all but `hidden` and `frozen`.
      hidden: what predicts the completions.
      completions: right-padded tokens.
      lengths: of the completions.
      sampling: the transform of the logits.
      kept: the tokens that there are.
      chunk: positions projected at a time.
      frozen: the projection to the vocabulary is not trained. The gradient of `logp` then reaches hidden states alone,
        and is taken in the forward pass: two products with the vocabulary in place of three. `entropy` passes none on.
    """
    return _scores([policy], [hidden], completions, lengths, sampling, kept, chunk, frozen)


def kept_tokens(
    policy: Policy, hidden: jax.Array, completions: jax.Array, sampling: Sampling, *, chunk: int = 256
) -> jax.Array:
    """Which tokens `sampling` leaves to be drawn at each position: bits, uint8 `[B, K, T, ceil(V / 8)]`.

    The completion's own token always is one of them: at the edge of the cut the sampler's rounding may have decided.
    The mask of DeepSeek-V3.2 (arXiv 2512.02556), under which old and new policy draw from the same tokens.

    Args:
      policy: who sampled.
      hidden: of `completion_hidden`, `[B, K, T, d]`.
      completions: `[B, K, T]`.
      sampling: with a cut.
      chunk: positions projected at a time.
    """

    def bits(hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        logits = transform(unembed(policy.model.decoder, policy.params, hidden, policy.lora), sampling)
        own = jnp.arange(logits.shape[-1]) == tokens[:, None]
        return jnp.packbits(jnp.isfinite(logits) | own, axis=-1)

    flat = (hidden.reshape(-1, hidden.shape[-1]), completions.reshape(-1))
    return _in_chunks(bits, flat, chunk, policy.model.mesh).reshape(*completions.shape, -1)


def _scores(policies: list[Policy], hidden: list, completions, lengths, sampling, kept, chunk, frozen=False) -> Scores:
    decoders = tuple(policy.model.decoder for policy in policies)
    variables = [(layout.vocabulary(policy.params, policy.model.mesh), policy.lora) for policy in policies]
    flat = [x.reshape(-1, x.shape[-1]) for x in hidden]
    kept = None if kept is None else kept.reshape(-1, kept.shape[-1])
    body = functools.partial(_frozen if frozen else _project, decoders)
    if not frozen:
        body = jax.checkpoint(body)  # keep hidden states, not logits, for the backward pass
    body = functools.partial(body, variables, sampling)
    scores = _in_chunks(body, (flat, completions.reshape(-1), kept), chunk, policies[0].model.mesh)
    real = jnp.arange(completions.shape[-1]) < lengths[..., None]
    shaped = [jnp.where(real, x.reshape(completions.shape), 0.0) for x in scores]
    return Scores(shaped[0], shaped[1], shaped[2] if len(policies) > 1 else None)


def completion_hidden(
    policy: Policy,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    completions: jax.Array,
    lengths: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Returns the hidden states that predict the completions, `[B, K, T, d]`; arguments as those of `score`.

    Raises:
      ValueError: as `score`. Under `jit` texts beyond learned positions, or whose completion takes them to where their
        rope turns all keys, are NaN.
    """
    batch = (prompts, prompt_lengths, completions, lengths)
    _check(*batch, policy, None)
    _check_values(*batch, [policy.model.config])
    return _hidden(policy, *batch, dropout_key)


def _hidden(policy: Policy, prompts, prompt_lengths, completions, lengths, dropout_key=None) -> jax.Array:
    """The states, NaN in rows whose length turns the keys that their prompt was run with."""
    hidden = _in_pieces(policy, prompts, prompt_lengths, completions, lengths, dropout_key)
    rope = policy.model.config.rope
    if rope is None or not rope.by_length:
        return hidden
    starts = prompt_lengths[:, None]
    turned = (starts + lengths > rope.original_max) & ~rope.settled(starts)
    return jnp.where(turned[..., None, None], jnp.nan, hidden)


def _in_pieces(policy: Policy, prompts, prompt_lengths, completions, lengths, dropout_key) -> jax.Array:
    decoder, (b, k, t) = policy.model.decoder, completions.shape
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    positions = default_positions(prompts.shape, prompt_lengths)
    hidden, prompt = run(decoder, policy.params, prompts, positions, (), policy.lora, keys[0], "hidden")
    first = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)
    first = jnp.broadcast_to(first[:, None], (b, k, 1, first.shape[-1]))
    if t == 1:
        return first
    tokens = completions[..., :-1].reshape(b * k, t - 1)
    steps = default_positions(tokens.shape, lengths.reshape(-1))
    steps = jnp.where(steps < 0, -1, steps + jnp.repeat(prompt_lengths, k)[:, None])
    rest, _ = run(decoder, policy.params, tokens, steps, [prompt], policy.lora, keys[1], "hidden")
    return jnp.concatenate([first, rest.reshape(b, k, t - 1, -1)], axis=2)


def _in_chunks(body: Callable, inputs: tuple, chunk: int, mesh: Mesh | None = None) -> Any:
    """`body(*inputs)` of arrays `[N, ...]`, `chunk` positions of each device at a time; returns arrays `[N, ...]`.

    A chunk that lay on one device would be computed by all of them, each time.
    """
    count = len(jax.tree.leaves(inputs)[0])
    parts = layout.parts(mesh) if count % layout.parts(mesh) == 0 else 1
    each = count // parts
    chunk = min(chunk, each)

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(parts, each, *x.shape[1:])
        padded = jnp.pad(x, ((0, 0), (0, -each % chunk)) + ((0, 0),) * (x.ndim - 2))
        chunks = padded.reshape(parts, -1, chunk, *x.shape[2:]).swapaxes(0, 1)
        chunks = layout.split(chunks, mesh, 1) if parts > 1 else chunks
        return chunks.reshape(-1, parts * chunk, *x.shape[2:])

    def whole(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, parts, chunk, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(parts, -1, *x.shape[3:])[:, :each].reshape(count, *x.shape[3:])

    outputs = jax.lax.map(lambda x: body(*x), jax.tree.map(split, inputs))
    return jax.tree.map(whole, outputs)


def _project(decoders: Sequence[Decoder], variables, sampling, hidden: list, tokens, kept) -> tuple:
    """Returns logp, entropy and KL (0 without a reference) `[N]` of positions with hidden states `[N, d]`."""
    logits = [unembed(decoder, params, h, lora) for decoder, (params, lora), h in zip(decoders, variables, hidden)]
    if kept is not None:
        there = jnp.unpackbits(kept, axis=-1, count=logits[0].shape[-1]).astype(bool)
        logits = [jnp.where(there, x, -jnp.inf) for x in logits]
    return _token_scores(logits, tokens, sampling)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen(decoders: Sequence[Decoder], variables, sampling, hidden: list, tokens, kept) -> tuple:
    return _project(decoders, variables, sampling, hidden, tokens, kept)


def _frozen_forward(decoders, variables, sampling, hidden, tokens, kept):
    """The scores, and the slope of each `logp` in its own hidden state, `[N, d]`: no other position moves it."""

    def scores(hidden):
        logp, *others = _project(decoders, variables, sampling, hidden, tokens, kept)
        return logp, others

    logp, pull, others = jax.vjp(scores, hidden, has_aux=True)
    return (logp, *others), pull(jnp.ones_like(logp))[0]


def _frozen_backward(_, slopes, grads):
    return None, None, [(x * grads[0][:, None]).astype(x.dtype) for x in slopes], None, None


_frozen.defvjp(_frozen_forward, _frozen_backward)


def _token_scores(logits: list, tokens: jax.Array, sampling: Sampling | None) -> tuple:
    """Returns logp, entropy and KL `[N]` from the policy's and the reference's logits `[N, V]`."""
    seen = logits[0] if sampling is None else transform(logits[0], sampling)
    log_total = jax.nn.logsumexp(seen, axis=-1, keepdims=True)  # log_softmax would hold `[N, V]` once more
    logp = (jnp.take_along_axis(seen, tokens[:, None], axis=-1) - log_total)[:, 0]
    log_probs = seen - log_total
    entropy = -_expectation(log_probs, log_probs)
    if len(logits) == 1:
        return logp, entropy, jnp.zeros_like(logp)
    tempered = logits
    if sampling is not None:
        only_temperature = Sampling(sampling.temperature)
        tempered = [transform(x, only_temperature) for x in logits]
    p, q = (x - jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in tempered)
    return logp, entropy, _expectation(p, p - q)


def _expectation(log_probs: jax.Array, values: jax.Array) -> jax.Array:
    """Returns the mean of values under probabilities, where the probability is not 0."""
    possible = jnp.isfinite(log_probs)
    products = jnp.exp(log_probs) * jnp.where(possible, values, 0.0)
    return products.sum(axis=-1)


def _check(prompts, prompt_lengths, completions, lengths, policy, reference) -> None:
    if prompts.ndim != 2 or completions.ndim != 3 or 0 in completions.shape + prompts.shape:
        shapes = f"{prompts.shape} and {completions.shape}"
        raise ValueError(f"expected prompts [B, P] and completions [B, K, T], got {shapes}")
    if len(prompts) != len(completions):
        raise ValueError(f"completions: {len(completions)} groups for {len(prompts)} prompts")
    if prompt_lengths.shape != prompts.shape[:1] or lengths.shape != completions.shape[:2]:
        got = f"{prompt_lengths.shape} and {lengths.shape}"
        raise ValueError(f"prompt_lengths and lengths: expected [B] and [B, K], got {got}")
    if reference is not None:
        sizes = [p.model.config.vocab_size for p in (policy, reference)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"reference: vocab_size {sizes[1]}, the policy has {sizes[0]}")


def _traced(x: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))


def _check_values(prompts, prompt_lengths, completions, lengths, configs: Sequence[ModelConfig]) -> None:
    """Checks what only concrete arrays tell, fetched together."""
    if _traced((prompt_lengths, lengths)):
        return
    texts = [None if _traced(x) else x for x in (prompts, completions)]
    texts, starts, counts = jax.device_get((texts, prompt_lengths, lengths))
    for name, found, least, most in (
        ("prompt_lengths", starts, 1, prompts.shape[-1]),
        ("lengths", counts, 0, completions.shape[-1]),
    ):
        if (wrong := found[(found < least) | (found > most)]).size:
            raise ValueError(f"{name}: {wrong[0]} is not in [{least}, {most}]")
    size = configs[0].vocab_size
    for name, ids, count in zip(("prompts", "completions"), texts, (starts, counts)):
        if ids is not None and (((ids < 0) | (ids >= size)) & (np.arange(ids.shape[-1]) < count[..., None])).any():
            raise ValueError(f"{name}: ids outside the vocabulary of {size}")
    for config in configs:
        _check_room(config, starts, counts)


def _check_room(config: ModelConfig, starts: np.ndarray, counts: np.ndarray) -> None:
    """Refuses texts beyond learned positions, and completions that turn their prompt's keys."""
    rope = config.rope
    if rope is not None and not rope.by_length:
        return
    room = np.array([config.room(start) for start in starts.tolist()])[:, None]
    if not (beyond := counts > room).any():
        return
    longest = (starts[:, None] + counts)[beyond].max()
    told = f", field n_positions={config.context}"
    if rope is not None:
        told = f"; beyond {rope.original_max} rope_scaling turns all its keys"
    raise ValueError(f"lengths: a text of {longest} tokens{told}")
