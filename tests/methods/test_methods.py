"""Methods as objects: bounds, facts, and that each minimises the loss it names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pairgrpo_jax as pg
from pairgrpo_jax.methods import (
    METHODS,
    NAMES,
    Adaptive,
    Dpo,
    Grpo,
    HardPair,
    Ipo,
    Likelihoods,
    Orpo,
    Ppo,
    RankGrpo,
    SimPo,
    SoftPair,
    Verdict,
    method_class,
    simpo_loss,
)

ADAPTIVE = Adaptive(jnp.int32(2), jnp.float32(1.5))
RNG = np.random.default_rng(0)
B, K, T = 5, 4, 3
MASK = jnp.asarray(RNG.integers(0, 2, (B, K, T)).clip(0, 1), jnp.float32).at[..., 0].set(1)
LOGP, OLD, REF = (jnp.asarray(RNG.normal(-2, 0.3, (B, K, T)), jnp.float32) for _ in range(3))
SCORES = jnp.asarray(RNG.normal(size=(B, K)), jnp.float32)
ALIVE = jnp.array([1.0, 0.0, 1.0, 1.0, 1.0])
BAD = [
    (Grpo, {"clip": -0.1}, "clip must be >= 0"),
    (Grpo, {"clip_high": -1.0}, "clip_high must be >= 0"),
    (Grpo, {"scale": "std"}, "scale='std' is unknown"),
    (RankGrpo, {"level": "word"}, "level='word' is unknown"),
    (Ppo, {"clip": "big"}, "clip must be a number"),
    (SoftPair, {"beta": float("nan")}, "beta must be >= 0"),
    (HardPair, {"delta_gamma": 0.0}, "delta_gamma must be in"),
    (HardPair, {"trust_region": "lagrangian", "beta": 0.0}, "beta must be > 0"),
    (Dpo, {"label_smoothing": 0.5}, "label_smoothing must be in"),
    (Ipo, {"beta": 0.0}, "beta must be > 0"),
    (Orpo, {"weight": -1.0}, "weight must be >= 0"),
    (SimPo, {"gamma": -1.0}, "gamma must be >= 0"),
]


@pytest.mark.parametrize(("cls", "fields", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_bad_value_is_named_when_the_method_is_made(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        cls(**fields)


@pytest.mark.parametrize("cls", METHODS, ids=NAMES)
def test_methods_are_values(cls):
    method = cls()
    assert method == cls() and hash(method) == hash(cls()) and method_class(cls.name) is cls
    assert method.online or method.offline
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.name = "other"  # type: ignore[misc]


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="method 'grop' is unknown; did you mean grpo"):
        method_class("grop")


def signal_of(method, alive=None):
    scores = SCORES if not method.critic else jnp.broadcast_to(SCORES[..., None], MASK.shape) * MASK
    return method.signal(Verdict(scores, None, alive, MASK), jax.random.key(0), ADAPTIVE)


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls.online], ids=lambda cls: cls.name)
@pytest.mark.parametrize("alive", [None, ALIVE], ids=["all alive", "one not"])
def test_a_signal_can_be_cut_and_dead_groups_take_no_part(cls, alive):
    method = cls()
    signal = signal_of(method, alive)
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(signal))

    def loss(logp):
        return pg.evaluate(method.objective(Likelihoods(logp, OLD, REF, MASK), signal, ADAPTIVE))[0]

    gradient = jax.grad(loss)(LOGP)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    if alive is not None:
        np.testing.assert_array_equal(gradient[1], 0)


def test_objectives_are_the_losses_they_name():
    likelihoods, kl = Likelihoods(LOGP, OLD, REF, MASK), pg.kl_k2(LOGP, OLD)
    pairs = pg.pairs_from_rewards(SCORES, scheme="all")
    advantages = pg.group_advantages(SCORES, scale="none", baseline="leave_one_out")
    hard = HardPair(delta_0=0.1, delta_gamma=0.5, hinge="tokens", trust_region="lagrangian")
    chosen, rejected = (jnp.sum(LOGP * MASK, -1)[:, i] for i in (0, 1))
    ref = [jnp.sum(REF * MASK, -1)[:, i] for i in (0, 1)]
    labels = pg.chosen_rejected_pairs(B)
    expected = {
        Grpo(scale="none", baseline="leave_one_out", clip_high=0.3): pg.grpo_loss(
            LOGP, OLD, advantages, mask=MASK, clip=(0.2, 0.3)
        ),
        SoftPair(beta=0.5): pg.soft_pair_grpo_loss(LOGP, OLD, pairs, mask=MASK, kl=kl, beta=0.5),
        hard: pg.hard_pair_grpo_loss(
            LOGP, OLD, pairs, 0.1 * 0.5**2, mask=MASK, kl=kl, trust_region="lagrangian", multiplier=1.5
        ),
        Dpo(label_smoothing=0.1): pg.dpo_loss(chosen, rejected, *ref, label_smoothing=0.1),
        Ipo(beta=0.2): pg.ipo_loss(chosen, rejected, *ref, beta=0.2),
    }
    for method, (value, _) in expected.items():
        verdict = Verdict(SCORES, None if method.online else labels, None, MASK)
        signal = method.signal(verdict, jax.random.key(0), ADAPTIVE)
        found, _ = pg.evaluate(method.objective(likelihoods, signal, ADAPTIVE))
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=method.name)


def test_simpo_equals_its_formula_in_float64():
    """Value and gradient of -log sigmoid(beta (mean logp_w - mean logp_l) - gamma), derived by hand."""
    beta, gamma = 2.5, 0.8
    method, likelihoods = SimPo(beta=beta, gamma=gamma), Likelihoods(LOGP, None, None, MASK)
    logp, mask = np.asarray(LOGP, np.float64), np.asarray(MASK, np.float64)
    means = (logp * mask).sum(-1) / mask.sum(-1)
    z = beta * (means[:, 0] - means[:, 1]) - gamma
    slope = -beta / (1 + np.exp(z)) / B  # d loss / d margin
    gradient = np.zeros_like(logp)
    gradient[:, 0] = (slope[:, None] * mask[:, 0]) / mask[:, 0].sum(-1, keepdims=True)
    gradient[:, 1] = (-slope[:, None] * mask[:, 1]) / mask[:, 1].sum(-1, keepdims=True)

    def loss(x):
        return pg.evaluate(method.objective(likelihoods._replace(logp=x), None, ADAPTIVE))

    (value, metrics), found = jax.value_and_grad(loss, has_aux=True)(LOGP)
    np.testing.assert_allclose(value, np.mean(np.log1p(np.exp(-z))), rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(means[:, 0] > means[:, 1]))
    with pytest.raises(ValueError, match="beta must be > 0"):
        simpo_loss(jnp.zeros(2), jnp.zeros(2), beta=0.0)


def test_delta_and_multiplier_are_renewed():
    hard = HardPair(delta_0=0.1, delta_gamma=0.5, trust_region="lagrangian", beta=0.1)
    after = hard.renewed(ADAPTIVE, jnp.float32(1.0))
    assert after.batches == 3 and after.multiplier > ADAPTIVE.multiplier
    assert hard.renewed(ADAPTIVE).multiplier == ADAPTIVE.multiplier  # no update was made
    np.testing.assert_allclose(hard.report(after)["delta"], 0.1 * 0.5**3, rtol=1e-6)
