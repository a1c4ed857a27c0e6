"""The decode loop: equal to full forward passes, exact in distribution, rows independent."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm import Policy, Sampling, generate, score
from pairgrpo_jax.lm.models import cache as kv_cache
from pairgrpo_jax.lm.models.generation import bucket

from .conftest import FAMILY_CONFIGS, tiny_model

KEY = jax.random.key(7)
PROMPTS = [[5, 9, 3, 40, 12], [7, 8], [11] * 9]


def run(model, prompts=PROMPTS, **options):
    options = {"max_new_tokens": 8, "key": KEY, "stop_ids": (), **options}
    return generate(model, model.params, prompts, **options)


@pytest.mark.parametrize("family", FAMILY_CONFIGS)
def test_cached_decode_equals_full_forward(family):
    model = tiny_model(family)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 97, (2, 24)))
    full = model.apply(model.params, tokens)
    cache = kv_cache.empty(model.config, 2, 24, jnp.float32)
    step = jax.jit(lambda t, c: model.apply(model.params, t, cache=c))
    got, cache = step(tokens[:, :7], cache)
    parts = [got]
    for t in range(7, 24):
        got, cache = step(tokens[:, t : t + 1], cache)
        parts.append(got)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=1e-4)


def test_full_cache_is_refused(tiny):
    cache = kv_cache.empty(tiny.config, 1, 3, jnp.float32)
    with pytest.raises(ValueError, match="3 slots"):
        tiny.apply(tiny.params, jnp.ones((1, 4), jnp.int32), cache=cache)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_logp_is_that_of_the_distribution_sampled_from(family):
    model = tiny_model(family)
    chosen = Sampling(0.7, top_k=20, top_p=0.9, min_p=0.02)
    options = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
    out = run(model, num_samples=3, stop_ids=(5, 6, 7), **options)
    prompts = np.zeros((3, 9), int)
    for i, p in enumerate(PROMPTS):
        prompts[i, : len(p)] = p
    lengths = jnp.asarray([len(p) for p in PROMPTS])
    batch = (jnp.asarray(prompts), lengths, jnp.asarray(out.tokens), jnp.asarray(out.lengths))
    scores = score(Policy(model, model.params), *batch, sampling=chosen)
    np.testing.assert_allclose(scores.logp, out.logp, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(tiny):
    together = run(tiny, num_samples=4)
    for i, prompt in enumerate(PROMPTS):
        alone = run(tiny, [prompt], num_samples=4, key=together.keys[i : i + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
    fewer = run(tiny, PROMPTS[:1], num_samples=2)
    np.testing.assert_array_equal(fewer.tokens[0], together.tokens[0, :2])
    longer = run(tiny, max_new_tokens=40, num_samples=4)
    np.testing.assert_array_equal(longer.tokens[:, :, :8], together.tokens)


def test_samples_differ_and_keys_decide(tiny):
    out = run(tiny, num_samples=4)
    assert len({tuple(x) for x in out.tokens.reshape(-1, 8)}) == 12
    np.testing.assert_array_equal(run(tiny, num_samples=4).tokens, out.tokens)
    assert not np.array_equal(run(tiny, num_samples=4, key=jax.random.key(8)).tokens, out.tokens)


def test_first_token_frequencies_match_softmax(tiny):
    from scipy.stats import chisquare

    n = 4000
    out = run(tiny, PROMPTS[:1], max_new_tokens=1, num_samples=n, temperature=1.3)
    logits = tiny.apply(tiny.params, jnp.asarray(PROMPTS[:1]))[0, -1] / 1.3
    expected = n * np.asarray(jax.nn.softmax(logits), np.float64)
    counts = np.bincount(out.tokens[0, :, 0], minlength=97)
    order = np.argsort(expected)
    rare = order[np.cumsum(expected[order]) < 50]
    common = np.setdiff1d(order, rare)
    seen = [counts[rare].sum(), *counts[common]]
    want = np.array([expected[rare].sum(), *expected[common]])
    assert chisquare(seen, want * n / want.sum()).pvalue > 1e-3


def test_stop_ids_end_a_row_and_the_rest_is_padding(tiny):
    free = run(tiny, num_samples=4, max_new_tokens=16)
    stop = int(free.tokens[0, 0, 5])
    out = run(tiny, num_samples=4, max_new_tokens=16, stop_ids=(stop,))
    for row, full, n, logp in zip(
        out.tokens.reshape(-1, 16),
        free.tokens.reshape(-1, 16),
        out.lengths.reshape(-1),
        out.logp.reshape(-1, 16),
    ):
        hits = np.flatnonzero(full == stop)
        assert n == (hits[0] + 1 if len(hits) else 16)
        np.testing.assert_array_equal(row[:n], full[:n])
        assert (row[n:] == tiny.config.pad_id).all() and (logp[n:] == 0).all()
        assert (logp[:n] < 0).all()


def test_the_loop_ends_when_all_rows_are_done(tiny):
    free = run(tiny, num_samples=4)
    seen = []
    stops = set(free.tokens[..., 2].ravel().tolist())  # by the third token every row has met one
    out = run(tiny, num_samples=4, stop_ids=stops, on_tokens=lambda tokens, lengths: seen.append(tokens.copy()))
    assert out.lengths.max() <= 3
    assert (seen[-1][..., :1] == free.tokens[..., :1]).all() and (seen[-1][..., 3:] == 0).all()


class Letters:
    """A tokenizer whose token i reads "<i>"."""

    def decode(self, ids):
        return "".join(f"<{i}>" for i in ids)


def test_stop_strings_end_rows_at_the_token_that_completes_them(tiny):
    model = dataclasses.replace(tiny, tokenizer=Letters())
    free = run(model, num_samples=4, max_new_tokens=20)
    first, second = free.tokens[1, 2, 10:12]  # a stop string that spans two tokens
    options = {"num_samples": 4, "max_new_tokens": 20}
    out = run(model, stop_strings=[f"{first}><{second}", "never"], **options)
    for row, full, n in zip(out.tokens.reshape(-1, 20), free.tokens.reshape(-1, 20), out.lengths.ravel()):
        hits = np.flatnonzero((full[:-1] == first) & (full[1:] == second))
        assert n == (hits[0] + 2 if len(hits) else 20)
        np.testing.assert_array_equal(row[:n], full[:n])
        assert (row[n:] == model.config.pad_id).all()
    assert out.lengths[1, 2] <= 12


def test_greedy_ignores_the_key(tiny):
    a, b = (run(tiny, temperature=0.0, key=jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(a.tokens, b.tokens)


def test_few_compilations_and_each_is_logged(tiny, caplog):
    jax.clear_caches()
    with caplog.at_level(logging.INFO, "pairgrpo_jax.lm"):
        for n in (3, 5, 9, 17, 30):
            run(tiny, [[5] * n] * 2, max_new_tokens=n, temperature=n / 10)
        first = len(caplog.records)
        run(tiny, [[5] * 40] * 2)
        assert len(caplog.records) > first == 2
    assert all("compiling" in r.message for r in caplog.records)
    assert [bucket(n, 32) for n in (1, 33, 100, 200, 1000)] == [32, 64, 128, 224, 1024]


def test_bad_requests_are_refused(tiny):
    for prompts, match in [
        ([], "empty batch"),
        ([[5], []], r"prompts\[1\]: an empty prompt"),
        ([[97]], "outside the vocabulary"),
        ([[-1]], "outside the vocabulary"),
        ([[5] * 121], "exceed the context of 128"),
    ]:
        with pytest.raises(ValueError, match=match):
            run(tiny, prompts)
    for option in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 2.0}):
        with pytest.raises(ValueError, match=next(iter(option))):
            run(tiny, **option)
    with pytest.raises(ValueError, match="stop_strings"):
        run(tiny, stop_strings=["x"])
    with pytest.raises(ValueError, match="stop_strings: an empty text"):
        run(dataclasses.replace(tiny, tokenizer=Letters()), stop_strings=["x", ""])
    with pytest.raises(ValueError, match="max_new_tokens"):
        run(tiny, max_new_tokens=0)
    with pytest.raises(ValueError, match="key"):
        run(tiny, key=jax.random.split(KEY, 5))


def test_bad_tokens_are_refused(tiny):
    ok = jnp.ones((2, 3), jnp.int32)
    for tokens, options, match in [
        (jnp.ones((2, 3)), {}, "integers"),
        (jnp.ones((0, 3), jnp.int32), {}, "empty"),
        (ok, {"lengths": jnp.ones(3)}, "lengths"),
        (ok, {"positions": jnp.ones((2, 2))}, "positions"),
    ]:
        with pytest.raises(ValueError, match=match):
            tiny.apply(tiny.params, tokens, **options)
    gpt2 = tiny_model("gpt2")
    with pytest.raises(ValueError, match="n_positions"):
        gpt2.apply(gpt2.params, jnp.ones((1, 129), jnp.int32))


def test_longrope_refuses_to_cross_its_switch_and_goes_on_beyond_it():
    """One batch holds texts of both sides; each is what the whole text gives."""
    model, rng = tiny_model("llama", 8), np.random.default_rng(0)
    for length, match in (
        (30, "tokens cross 32, where rope_scaling turns all keys; at most 2 can follow"),
        (32, "tokens cross 32, where rope_scaling turns all keys$"),
        (124, "tokens exceed the context of 128; at most 4 can follow"),
    ):
        with pytest.raises(ValueError, match=match):
            run(model, [[5] * length])
    prompts = [rng.integers(3, 97, n).tolist() for n in (24, 40)]
    out = run(model, prompts)
    for prompt, tokens, logp in zip(prompts, out.tokens[:, 0], out.logp[:, 0]):
        logits = model.apply(model.params, jnp.asarray([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
        np.testing.assert_allclose(jax.nn.log_softmax(logits)[np.arange(8), tokens], logp, atol=1e-4)


@pytest.mark.parametrize("slots", [5, 32])
def test_refilled_rows_hold_the_texts_of_the_whole_batch(tiny, slots):
    """Prompts of three widths, in two pieces; 32 slots are narrowed to 16 and 8 when nothing waits any more."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 97, n).tolist() for n in (3, 40, 7, 9, 33, 2, 5, 70, 4)]
    options = {"num_samples": 4, "max_new_tokens": 30, "stop_ids": range(5, 12), "temperature": 0.8, "top_p": 0.95}
    whole, out = (run(tiny, prompts, slots=x, **options) for x in (None, slots))
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    np.testing.assert_array_equal(out.lengths, whole.lengths)
    np.testing.assert_allclose(out.logp, whole.logp, rtol=1e-4, atol=1e-4)  # as a row run alone differs: rounding
    assert whole.lengths.min() == 1 and whole.lengths.max() == 30


def test_refilled_rows_end_at_stop_strings_and_are_told_as_they_come(tiny):
    model, seen = dataclasses.replace(tiny, tokenizer=Letters()), []
    free = run(model, num_samples=4, max_new_tokens=20)
    stops = ["".join(f"<{i}>" for i in free.tokens[1, 2, 10:12])]
    options = {"num_samples": 4, "max_new_tokens": 20, "stop_strings": stops}
    whole = run(model, **options)
    out = run(model, slots=5, on_tokens=lambda tokens, lengths: seen.append((tokens, lengths)), **options)
    np.testing.assert_array_equal(out.tokens, whole.tokens)
    assert out.lengths[1, 2] <= 12 and seen[-1][1].tolist() == whole.lengths.tolist()
    assert len(seen) > 4 and (seen[0][1] == 1).all()


def test_slots_that_cannot_be_are_refused(tiny):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    for options, match in (({"slots": 0}, "slots=0 must be positive"), ({"slots": 2, "rows": rows}, "on a mesh")):
        with pytest.raises(ValueError, match=match):
            run(tiny, **options)
