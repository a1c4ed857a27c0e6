"""Finite values and gradients at the edges, in float32, under jit, vmap, grad and pmap."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import make

import pairgrpo_jax as pg


class Batch(NamedTuple):
    logp: jax.Array
    old_logp: jax.Array
    mask: jax.Array
    rewards: jax.Array
    delta: jax.Array


def batch(dtype=jnp.float32, size=4, **changes):
    case = make(0, (2, size, 3), ties=False)
    delta = changes.pop("delta", 0.02)
    arrays = {name: getattr(case, name) for name in Batch._fields[:4]} | changes
    return Batch(**{name: jnp.asarray(x, dtype) for name, x in arrays.items()}, delta=jnp.asarray(delta, jnp.float32))


FAR = make(0, (2, 4, 3)).old_logp + 80.0 * np.sign(np.random.default_rng(0).normal(size=(2, 4, 3)))
EDGES = {
    "plain": batch(),
    "ties": batch(rewards=[[0, 0, 1, 1], [2, 0, 0, 0]]),
    "equal rewards, no pairs": batch(rewards=np.full((2, 4), 0.1)),
    "fully masked row": batch(mask=np.ones((2, 4, 3)) * [[[0], [1], [1], [1]], [[1], [0], [0], [1]]]),
    "everything masked": batch(mask=np.zeros((2, 4, 3))),
    "log-ratios of +-80": batch(logp=FAR, mask=np.ones((2, 4, 3))),
    "delta beyond the mass": batch(delta=7.0),
    "theta = theta_old": batch(logp=make(0, (2, 4, 3)).old_logp),
}


def losses(batch):
    """Name -> loss of `logp`: every loss and option of the package."""
    old, mask = batch.old_logp, batch.mask
    advantages = pg.group_advantages(batch.rewards)
    rest = {"mask": mask, "beta": 0.1}
    for level, aggregate in (("token", "sequence_mean"), ("token", "constant"), ("sequence", "token_mean")):
        how = rest | {"level": level, "aggregate": aggregate}
        yield (
            f"grpo {level} {aggregate}",
            lambda x, how=how: pg.grpo_loss(x, old, advantages, kl=pg.kl_k3(x, old), **how),
        )
    for scheme in ("best_worst", "matched", "all", "bradley_terry"):
        pairs = pg.pairs_from_rewards(batch.rewards, scheme=scheme, key=jax.random.key(0))
        yield f"soft {scheme}", lambda x, p=pairs: pg.soft_pair_grpo_loss(x, old, p, kl=pg.kl_k2(x, old), **rest)
        how = {
            "best_worst": {"fit": "forward", "length_normalize": True},
            "matched": {},
            "all": {"candidates": "likelihood", "project_target": True},
            "bradley_terry": {
                "fit": "forward",
                "candidates": "likelihood",
                "trust_region": "lagrangian",
                "multiplier": 2.0,
            },
        }[scheme]
        yield (
            f"hard {scheme}",
            lambda x, p=pairs, how=how: pg.hard_pair_grpo_loss(x, old, p, batch.delta, mask=mask, **how),
        )
    yield (
        "ppo",
        lambda x: pg.ppo_loss(x, old, old, x, old, old, mask=mask, value_clip=0.2, entropy=x, entropy_weight=0.1),
    )
    two = lambda x: (x[:, 0, 0], x[:, 1, 0])  # noqa: E731
    yield "dpo", lambda x: pg.dpo_loss(*two(x), *two(old), label_smoothing=0.1)
    yield "ipo", lambda x: pg.ipo_loss(*two(x), *two(old))
    yield "orpo", lambda x: pg.orpo_loss(*two(x))
    good = jnp.arange(len(old)) % 2 == 0
    yield "kto", lambda x: pg.kto_loss(x[:, 0, 0], old[:, 0, 0], good, pg.kto_reference_point(x[:, 1], old[:, 1]))


def suite(batch):
    """`{name: ((loss, metrics), gradient)}`"""
    return {name: jax.value_and_grad(loss, has_aux=True)(batch.logp) for name, loss in losses(batch)}


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(suite)


@pytest.fixture(scope="module")
def results(compiled):
    return {name: compiled(edge) for name, edge in EDGES.items()}


def assert_finite(results):
    bad = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree_util.tree_leaves_with_path(results)
        if not np.isfinite(x).all()
    ]
    assert not bad


@pytest.mark.parametrize("edge", EDGES)
def test_finite_at_the_edges(results, edge):
    assert_finite(results[edge])


def test_nothing_to_learn_gives_a_zero_gradient(results):
    """Pair losses of groups without pairs are 0; a fully masked batch moves nothing (DPO's sequences have no mask)."""
    for edge, prefixes in {
        "equal rewards, no pairs": ("soft", "hard"),
        "everything masked": ("soft", "grpo", "ppo"),
    }.items():
        for name, ((loss, _), gradient) in results[edge].items():
            if name.startswith(prefixes):
                assert loss == 0 and not gradient.any(), name


def test_two_candidates_and_bfloat16(compiled):
    half = batch(jnp.bfloat16, size=2)
    in_half, in_single = compiled(half), compiled(jax.tree.map(lambda x: x.astype(jnp.float32), half))
    assert_finite(in_half)
    for name, ((loss, _), gradient) in in_half.items():
        assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
        (expected, _), exact = in_single[name]
        if not name.startswith(("grpo", "soft")):  # their kl is taken from x itself, here in each precision
            np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient.astype(jnp.float32), exact, rtol=0.01, atol=1e-3)


def test_pmap_of_vmap_over_the_edges_equals_jit(results):
    """The eight edges on four devices, two each."""
    assert jax.device_count() == len(EDGES) == 8
    stacked = jax.tree.map(lambda *x: jnp.stack(x).reshape(4, 2, *x[0].shape), *EDGES.values())
    together = jax.pmap(jax.vmap(suite), devices=jax.devices()[:4])(stacked)
    together = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), together)
    for index, edge in enumerate(EDGES):
        one = jax.tree.map(lambda x, index=index: x[index], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, results[edge])


def test_a_metric_that_overflows_leaves_the_loss_alone():
    """16,000 tokens of log-ratio 80: their clipped loss is -1.2, while the sum of `approx_kl` is inf in float32."""
    logp = jnp.full((1, 2, 8000), 80.0)
    loss = lambda x: pg.grpo_loss(x, 0 * x, jnp.ones((1, 2)), aggregate="token_mean")  # noqa: E731
    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logp)
    assert np.isinf(metrics["approx_kl"])
    np.testing.assert_allclose(value, -1.2, rtol=1e-6)
    assert not gradient.any()


def test_hyperparameters_may_be_traced():
    case = make(0, (2, 4, None), masked=False)
    pairs = case.pairs("all")

    def loss(h):
        soft, _ = pg.soft_pair_grpo_loss(case.logp, case.old_logp, pairs, clip=(h, 2 * h), beta=h)
        hard, _ = pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, h, alpha=h, beta=h)
        return soft + hard + pg.pairs_from_rewards(jnp.asarray(case.rewards), margin=h).weight.sum()

    swept = jax.jit(jax.vmap(loss))(jnp.asarray([0.1, 0.3]))
    np.testing.assert_allclose(swept, [loss(0.1), loss(0.3)], rtol=1e-5)
