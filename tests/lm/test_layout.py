"""What the compiler makes of a mesh: each device computes its own texts, and moves no more than parameters."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from pairgrpo_jax.commands.align_settings import preset as align_preset
from pairgrpo_jax.lm.alignment import Placement
from pairgrpo_jax.lm.alignment.programs import programs
from pairgrpo_jax.lm.models import generation
from pairgrpo_jax.lm.models.generation import Sampling
from pairgrpo_jax.lm.models.scoring import Policy, score
from pairgrpo_jax.training.cost import collectives

from .conftest import tiny_model

B, K, P, T = 8, 4, 16, 16
CHUNK = 8


@pytest.fixture(scope="module", params=["data", "fsdp"])
def placed(request):
    """A tiny model on all eight devices, and where its batches go."""
    placement = Placement.over(request.param)
    return request.param, placement.model(tiny_model()), placement


def batch(placement):
    rng = np.random.default_rng(0)
    prompts, completions = (rng.integers(3, 97, shape).astype(np.int32) for shape in ((B, P), (B, K, T)))
    return placement.batch((prompts, np.full(B, P, np.int32), completions, np.full((B, K), T, np.int32)))


def gradient(model):
    def loss(params, batch):
        return score(Policy(model, params), *batch, chunk=CHUNK).logp.sum()

    return jax.jit(jax.value_and_grad(loss))


def parameter_bytes(model):
    return sum(x.nbytes for x in jax.tree.leaves(model.params))


def test_each_device_scores_its_own_texts(placed):
    """The loop over chunks of positions runs as often as one device's share needs, not all of them."""
    _, model, placement = placed
    text = gradient(model).lower(model.params, batch(placement)).compile().as_text()
    trips = {int(n) for n in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)}
    whole = B * K * T // CHUNK
    assert whole // 8 in trips and whole not in trips


def test_an_update_moves_parameters_and_gradients_only(placed):
    mesh, model, placement = placed
    text = gradient(model).lower(model.params, batch(placement)).compile().as_text()
    moved = {kind: size for kind, (_, size) in collectives(text).items()}
    size = parameter_bytes(model)
    assert moved["all-reduce"] < 3 * size  # gradients, of prompts and of completions, and of the vocabulary by chunks
    assert moved.get("all-gather", 0) < (8 * size if mesh == "fsdp" else 0.1 * size)  # a few passes over the layers


def test_the_gradient_of_replicated_parameters_is_added_up_once():
    """Not after every layer, where devices, and processes, would wait for each other."""
    placement = Placement.over("data")
    config = align_preset("grpo", ()).config.replace(prompts=B, candidates=K, prompt_tokens=P, completion_tokens=T)
    model = dataclasses.replace(tiny_model(), params=None)
    update = next(iter(programs(config, model, placement, 2)))
    text = update.traced.lower().compile().as_text()
    once = re.sub(r'known_trip_count":\{"n":"\d+"', 'known_trip_count":{"n":"1"', text)
    assert collectives(text)["all-reduce"] == collectives(once)["all-reduce"]  # none is in a loop


def test_scores_on_a_mesh_are_those_of_one_device(placed):
    _, model, placement = placed
    one, alone = Placement(), tiny_model()
    value, grads = gradient(model)(model.params, batch(placement))
    expected, wanted = gradient(alone)(alone.params, batch(one))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        assert np.linalg.norm(x - y) < 2e-3 * np.linalg.norm(y)  # sums of float32 that cancel


def test_positions_that_devices_do_not_divide_are_scored_too():
    placement, rng = Placement.over("data"), np.random.default_rng(0)
    model, alone = placement.model(tiny_model()), tiny_model()
    texts = (rng.integers(3, 97, (3, P)), np.full(3, P), rng.integers(3, 97, (3, 1, 5)), np.full((3, 1), 5))
    texts = tuple(x.astype(np.int32) for x in texts)
    found, expected = (score(Policy(x, x.params), *texts, chunk=4).logp for x in (model, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_cache_and_what_is_drawn_are_split_by_texts(placed):
    _, model, placement = placed
    tokens, lengths, *_ = batch(placement)
    keys = generation.row_keys(jax.random.key(0), B, K).reshape(-1)
    settings = (Sampling(), np.int32([96]), keys)
    real = placement.batch(np.ones(B, bool))
    state = generation.prefill(model.decoder, 32, model.params, tokens, lengths, real, settings, None)
    kv = state.cache.own.k
    assert kv.sharding.shard_shape(kv.shape)[1] == B * K // 8
    assert state.cache.shared.k.sharding.shard_shape(state.cache.shared.k.shape)[1] == B // 8
    lowered = generation.decode.lower(model.decoder, model.params, state, np.int32(9), settings, None)
    moved = collectives(lowered.compile().as_text())
    assert sum(size for _, size in moved.values()) < 0.5 * parameter_bytes(model)  # a token; layers stay where they are


def test_wide_models_draw_the_same_tokens_on_a_mesh(placed):
    _, model, placement = placed
    how = {"max_new_tokens": 12, "key": jax.random.key(1), "num_samples": K}
    prompts = [list(range(3, 3 + n)) for n in range(1, 1 + B)]
    found = generation.generate(model, model.params, prompts, rows=placement.rows, **how)
    alone = tiny_model()
    expected = generation.generate(alone, alone.params, prompts, **how)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-4)


def test_pieces_of_one_collective_count_once():
    text = """%a (p: f32[8]) -> f32[8] {
  %g.1 = bf16[8,16]{1,0} all-gather(%x), channel_id=3, dimensions={0}
}
%b (p: f32[8]) -> f32[8] {
  %g.2 = bf16[8,16]{1,0} all-gather(%x), channel_id=3, dimensions={0}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %one = f32[8] fusion(%p), kind=kCustom, calls=%a
  %two = f32[8] fusion(%one), kind=kCustom, calls=%b
  %r = f32[4]{0} all-reduce(%two), channel_id=4, to_apply=%sum
}
"""
    assert collectives(text) == {"all-gather": (1, 256), "all-reduce": (1, 16)}
