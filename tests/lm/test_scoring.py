"""Chunked scores equal the naive `[B, T, V]` form, gradients too, in less memory."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import Policy, Sampling, score
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.attention import KV, attend
from pairgrpo_jax.lm.models.decoder import run
from pairgrpo_jax.lm.models.generation import generate
from pairgrpo_jax.lm.models.sampling import transform
from pairgrpo_jax.lm.models.scoring import completion_hidden, score_hidden

from .conftest import double, tiny_model

RNG = np.random.default_rng(1)
P_LENGTHS, LENGTHS = jnp.asarray([4, 7]), jnp.asarray([[5, 1, 6], [2, 6, 3]])
PROMPTS, COMPLETIONS = (jnp.asarray(RNG.integers(3, 97, s), jnp.int32) for s in ((2, 7), (2, 3, 6)))
BATCH = (PROMPTS, P_LENGTHS, COMPLETIONS, LENGTHS)
REAL = np.arange(6) < np.asarray(LENGTHS)[..., None]


def joined_texts():
    """Whole texts `[6, 13]`, prompt and completion side by side, and where completions start."""
    starts = np.repeat(np.asarray(P_LENGTHS), 3)
    texts = np.zeros((6, 13), np.int32)
    for row, n in enumerate(starts):
        texts[row, :n] = PROMPTS[row // 3, :n]
        texts[row, n : n + 6] = COMPLETIONS[row // 3, row % 3]
    return texts, starts


TEXTS, STARTS = joined_texts()


def naive_logits(model, params):
    """Logits `[B, K, T, V]` of the completions, from whole texts."""
    logits = model.apply(params, jnp.asarray(TEXTS))
    at = STARTS[:, None] - 1 + np.arange(6)
    return logits[np.arange(6)[:, None], at].reshape(2, 3, 6, -1)


def naive(model, params, sampling=None):
    logits = naive_logits(model, params)
    logits = logits if sampling is None else transform(logits, sampling)
    log_probs = jax.nn.log_softmax(logits)
    logp = jnp.take_along_axis(log_probs, COMPLETIONS[..., None], -1)[..., 0]
    return jnp.where(REAL, logp, 0.0)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_logp_and_gradient_equal_the_naive_form(family):
    """In float64: in float32 the order of sums, another on each processor, moves them by up to 3e-4."""
    with jax.enable_x64(True):
        model = double(tiny_model(family))
        weights = jnp.asarray(RNG.normal(size=COMPLETIONS.shape))

        def slopes(logp):
            return jax.jit(jax.value_and_grad(lambda params: (logp(params) * weights).sum()))(model.params)

        found = slopes(lambda params: score(Policy(model, params), *BATCH, chunk=5).logp)
        wanted = slopes(lambda params: naive(model, params))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-9)
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float64")}


def test_transform_entropy_and_kl(tiny):
    chosen = Sampling(0.8, top_k=30, top_p=0.95)
    other = jax.tree.map(lambda x: x * 1.1, tiny.params)
    reference = Policy(tiny, other)
    got = score(Policy(tiny, tiny.params), *BATCH, sampling=chosen, reference=reference, chunk=4)
    np.testing.assert_allclose(np.where(REAL, got.logp, 0), naive(tiny, tiny.params, chosen), atol=1e-4)
    logits = [naive_logits(tiny, p) for p in (tiny.params, other)]
    probs = np.asarray(jax.nn.softmax(transform(logits[0], chosen)), np.float64)
    entropy = -np.where(probs > 0, probs * np.log(np.maximum(probs, 1e-300)), 0).sum(-1)
    np.testing.assert_allclose(got.entropy, entropy * REAL, atol=1e-4)
    p, q = (jax.nn.log_softmax(x / 0.8) for x in logits)
    np.testing.assert_allclose(got.kl, (jnp.exp(p) * (p - q)).sum(-1) * REAL, atol=1e-4)
    assert (np.asarray(got.kl)[REAL] > 0).all()


def test_kl_to_itself_is_zero_and_reference_gets_no_gradient(tiny):
    def kl(params, reference):
        other = Policy(tiny, reference)
        return score(Policy(tiny, params), *BATCH, reference=other).kl.sum()

    other = jax.tree.map(lambda x: x * 1.1, tiny.params)
    assert abs(float(kl(tiny.params, tiny.params))) < 1e-5
    grads = jax.grad(kl, (0, 1))(tiny.params, other)
    sizes = [sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(g)) for g in grads]
    assert sizes[0] > 0 and sizes[1] == 0


def test_lora_reference_is_the_base_model(tiny):
    config = lora.LoraConfig(rank=4)
    adapters = lora.init(config, tiny.config, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.05, adapters)
    policy = Policy(tiny, tiny.params, lora.variables(config, adapters))
    got = score(policy, *BATCH, reference=Policy(tiny, tiny.params))
    assert float(got.kl.sum()) > 1e-3
    merged = lora.merge(config, tiny.params, adapters)
    np.testing.assert_allclose(got.logp, naive(tiny, merged), atol=1e-4)


@pytest.mark.parametrize("chosen", [None, Sampling(0.8, top_k=30, top_p=0.95, min_p=0.01)], ids=["plain", "cut"])
def test_a_frozen_vocabulary_gives_the_same_gradients_in_two_products(tiny, chosen):
    """In float64, through the hidden states, for any weight of a position; a cut distribution has logits of -inf."""
    with jax.enable_x64(True):
        model = double(tiny)
        hidden = jnp.asarray(RNG.normal(size=(*COMPLETIONS.shape, model.config.hidden_size)))
        weights = jnp.asarray(RNG.normal(size=COMPLETIONS.shape))

        def loss(hidden, frozen, how=chosen):
            policy, rest = Policy(model, model.params), (COMPLETIONS, LENGTHS)
            scores = score_hidden(policy, hidden, *rest, sampling=how, chunk=5, frozen=frozen)
            entropy = jax.lax.stop_gradient(scores.entropy).sum()
            return jnp.where(jnp.isfinite(scores.logp), scores.logp * weights, 0).sum() + entropy

        pull = jax.jit(jax.value_and_grad(loss), static_argnums=1)
        (value, found), (expected, plain) = pull(hidden, True), pull(hidden, False)
        tolerance = 1e-12 if chosen is None else 1e-6  # a sampling transform is in float32
        np.testing.assert_allclose(value, expected, rtol=tolerance)
        np.testing.assert_allclose(found, plain, rtol=tolerance, atol=tolerance)
        assert float(jnp.abs(found).max()) > 0.01
        for frozen, products in ((True, 2), (False, 3)):
            program = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(hidden, frozen)
            assert str(program).count("dot_general") == products


def test_padding_contents_do_not_matter(tiny):
    got = score(Policy(tiny, tiny.params), *BATCH)
    junk = jnp.where(REAL, COMPLETIONS, 96)
    prompts = jnp.where(jnp.arange(7) < P_LENGTHS[:, None], PROMPTS, 96)
    again = score(Policy(tiny, tiny.params), prompts, P_LENGTHS, junk, LENGTHS)
    np.testing.assert_array_equal(got.logp, again.logp)


def test_memory_is_at_most_60_percent_of_the_naive_form():
    from pairgrpo_jax.lm.models.params import abstract_params

    model = tiny_model()
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=20_000))
    abstract = abstract_params(model.config)
    batch = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((4, 32), (4,), (4, 4, 64), (4, 4))]

    def chunked(params, *batch):
        return score(Policy(model, params), *batch, chunk=128).logp.sum()

    def whole(params, prompts, _, completions, lengths):
        texts = jnp.concatenate([jnp.repeat(prompts, 4, 0), completions.reshape(16, 64)], 1)
        logits = jax.nn.log_softmax(model.apply(params, texts))[:, 31:-1]
        return jnp.take_along_axis(logits, completions.reshape(16, 64, 1), -1).sum()

    def peak(f):
        compiled = jax.jit(jax.grad(f)).lower(abstract, *batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(chunked) < 0.6 * peak(whole)


def test_bad_shapes_are_refused(tiny):
    policy = Policy(tiny, tiny.params)
    for batch, match in [
        ((PROMPTS[0], *BATCH[1:]), r"\[B, P\]"),
        ((PROMPTS[:1], P_LENGTHS[:1], *BATCH[2:]), "groups"),
        ((PROMPTS, P_LENGTHS[:1], *BATCH[2:]), "prompt_lengths"),
        ((PROMPTS, P_LENGTHS, COMPLETIONS[:, :0], LENGTHS), "expected prompts"),
    ]:
        with pytest.raises(ValueError, match=match):
            score(policy, *batch)


@pytest.mark.parametrize("index", [5, 8])
def test_texts_whose_length_turns_the_prompts_keys_are_refused(index):
    """Beyond their original context `dynamic` and `longrope` cannot be run in parts."""
    model = tiny_model("llama", index)
    limit = model.config.rope.original_max
    assert model.config.rope.by_length and model.config.context == limit
    tokens = jnp.ones((1, limit), jnp.int32)
    batch = (tokens, jnp.asarray([limit - 3]), tokens[None, :, :3], jnp.asarray([[3]]))
    assert np.isfinite(score(Policy(model, model.params), *batch).logp).all()
    across = (tokens, jnp.asarray([limit]), *batch[2:])
    for reference in (None, Policy(model, model.params)):
        policy = Policy(model if reference is None else tiny_model(), model.params)
        with pytest.raises(ValueError, match=f"beyond {limit} rope_scaling"):
            score(policy, *across, reference=reference)
    logp = jax.jit(lambda *b: score(Policy(model, model.params), *b).logp)
    assert np.isnan(logp(*across)).all() and np.isfinite(logp(*batch)).all()


def test_a_longrope_prompt_beyond_the_switch_point_is_scored_as_the_whole_text():
    """Under `jit` beside one that crosses it, which is NaN."""
    model = tiny_model("llama", 8)
    policy, text = Policy(model, model.params), jnp.asarray(RNG.integers(3, 97, (1, 48)), jnp.int32)
    assert model.config.rope.original_max == 32 and model.config.max_positions == 128
    prompts, completions = jnp.tile(text[:, :40], (2, 1)), jnp.tile(text[None, :, 40:], (2, 1, 1))
    batch = (prompts, jnp.asarray([40, 30]), completions, jnp.asarray([[8], [8]]))
    want = jax.nn.log_softmax(model.apply(model.params, text)[0, 39:-1])[jnp.arange(8), text[0, 40:]]
    logp = jax.jit(lambda *b: score(policy, *b).logp)(*batch)
    np.testing.assert_allclose(logp[0, 0], want, atol=1e-4)
    assert np.isnan(logp[1]).all()
    np.testing.assert_allclose(score(policy, *(x[:1] for x in batch)).logp[0, 0], want, atol=1e-4)
    with pytest.raises(ValueError, match="a text of 38 tokens; beyond 32"):
        score(policy, *batch)
    with pytest.raises(ValueError, match="a text of 130 tokens; beyond 32"):
        score(policy, jnp.ones((1, 122), jnp.int32), jnp.asarray([122]), *(x[:1] for x in batch[2:]))


@pytest.mark.parametrize("of", [score, completion_hidden])
@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, PROMPTS.at[0, 3].set(97), "prompts: ids outside the vocabulary of 97"),
        (1, jnp.asarray([4, 0]), r"prompt_lengths: 0 is not in \[1, 7\]"),
        (1, jnp.asarray([8, 7]), r"prompt_lengths: 8 is not in \[1, 7\]"),
        (2, COMPLETIONS.at[1, 2, 0].set(-1), "completions: ids outside the vocabulary of 97"),
        (3, LENGTHS.at[0, 1].set(7), r"lengths: 7 is not in \[0, 6\]"),
        (3, LENGTHS.at[0, 1].set(-1), r"lengths: -1 is not in \[0, 6\]"),
    ],
)
def test_values_that_no_text_has_are_refused(tiny, of, place, value, match):
    with pytest.raises(ValueError, match=match):
        of(Policy(tiny, tiny.params), *BATCH[:place], value, *BATCH[place + 1 :])


def test_bad_numbers_and_texts_beyond_the_context_are_refused():
    gpt2 = tiny_model("gpt2")
    policy = Policy(gpt2, gpt2.params)
    with pytest.raises(ValueError, match="top_p"):
        score(policy, *BATCH, sampling=Sampling(top_p=0.0))
    tokens = jnp.ones((1, 100), jnp.int32)
    batch = (tokens, jnp.asarray([100]), tokens[None, :, :40], jnp.asarray([[40]]))
    with pytest.raises(ValueError, match="n_positions=128"):
        score(policy, *batch)
    logp = jax.jit(lambda *b: score(policy, *b).logp)(*batch)
    assert np.isnan(logp[0, 0, 29:]).all()  # never a number that looks right


def log_probs_in_float64(model, hidden):
    """From bfloat16 hidden states `[..., d]` and weights rounded to bfloat16: all that rounding should do."""
    weights = model.params["embed"].T if model.config.tied else model.params["lm_head"]["kernel"]
    wide = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, weights)]
    logits = wide[0] @ wide[1]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("index", [0, 2], ids=["untied", "tied"])
def test_bfloat16_logits_are_never_rounded_to_bfloat16(index):
    """Not even where the compiler may not keep more precision than it is told to."""
    model = dataclasses.replace(tiny_model("llama", index), dtype=jnp.bfloat16)
    policy, told = Policy(model, model.params), {"xla_allow_excess_precision": False}
    hidden = jax.jit(lambda p: completion_hidden(policy._replace(params=p), *BATCH), compiler_options=told)
    scores = jax.jit(lambda p: score(policy._replace(params=p), *BATCH), compiler_options=told)(model.params)
    want = log_probs_in_float64(model, hidden(model.params))
    logp = np.take_along_axis(want, np.asarray(COMPLETIONS)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.logp, logp * REAL, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, -(np.exp(want) * want).sum(-1) * REAL, atol=1e-5)
    prompt, positions = jnp.zeros((1, 32), jnp.int32).at[0, :3].set(jnp.array([5, 6, 7])), jnp.arange(32)[None]
    with jax.disable_jit():
        drawn = generate(model, model.params, [[5, 6, 7]], max_new_tokens=1, key=jax.random.key(0), num_samples=8)
        states, _ = run(model.decoder, model.params, prompt, jnp.where(positions < 3, positions, -1), method="hidden")
    want = log_probs_in_float64(model, states[0, 2])[drawn.tokens[0, :, 0]]
    np.testing.assert_allclose(drawn.logp[0, :, 0], want, atol=1e-5)


def test_bfloat16_attention_is_rounded_once_wherever_the_keys_are():
    q, k, v = (jnp.asarray(RNG.normal(size=(1, 2, n, 8)), jnp.bfloat16) for n in (1, 40, 40))
    at = jnp.arange(40)[None]
    places = [KV(k[:, :, part], v[:, :, part], at[:, part]) for part in (slice(0, 20), slice(20, 40))]
    split, whole = (attend(q, x, jnp.array([[39]]), scale=0.3) for x in (places, [KV(k, v, at)]))
    assert split.dtype == jnp.bfloat16
    np.testing.assert_array_equal(split, whole)
