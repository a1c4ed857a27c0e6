import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import AGGREGATES, CLIPS, LEVELS, SCHEMES, SHAPES, cases, make
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import pairgrpo_jax as pg
from pairgrpo_jax.core.surrogate import clipped_surrogate

pytestmark = pytest.mark.usefixtures("x64")
OPTIONS = {
    "clip": st.sampled_from(CLIPS),
    "dual_clip": st.sampled_from([None, 1.1, 3.0]),
    "level": st.sampled_from(LEVELS),
    "aggregate": st.sampled_from(AGGREGATES),
    "beta": st.sampled_from([0.0, 0.3]),
}


@given(case=cases(), with_kl=st.booleans(), per_step=st.booleans(), **OPTIONS)
def test_grpo_matches_the_reference(case, with_kl, per_step, **options):
    rng = np.random.default_rng(case.seed)
    advantages = rng.normal(size=case.logp.shape if per_step else case.rewards.shape)
    kl = case.kl if with_kl else None
    loss, metrics = pg.grpo_loss(case.logp, case.old_logp, advantages, mask=case.mask, kl=kl, **options)
    steps = None if kl is None else case.steps(kl)
    expected = reference.surrogate(
        case.steps(case.logp), case.steps(case.old_logp), advantages, case.steps(case.mask), kl=steps, **options
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-12)
    assert ("kl" in metrics) == with_kl


@given(case=cases(), scheme=st.sampled_from(SCHEMES), with_kl=st.booleans(), **OPTIONS)
def test_soft_matches_the_reference(case, scheme, with_kl, **options):
    pairs = case.pairs(scheme)
    kl = case.kl if with_kl else None
    loss, metrics = pg.soft_pair_grpo_loss(case.logp, case.old_logp, pairs, mask=case.mask, kl=kl, **options)
    expected = reference.soft(
        case.steps(case.logp), case.steps(case.old_logp), reference.listed(pairs), case.steps(case.mask),
        kl=None if kl is None else case.steps(kl), **options,
    )  # fmt: skip
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-12)
    without = [not group for group in reference.listed(pairs)]
    np.testing.assert_allclose(metrics["groups_without_pair"], np.mean(without))


@given(
    seed=st.integers(0, 1000),
    value_clip=st.sampled_from([None, 0.1]),
    entropy_weight=st.sampled_from([None, 0.0, 0.2]),
    clip=st.sampled_from(CLIPS),
    dual_clip=st.sampled_from([None, 1.1]),
    masked=st.booleans(),
)
def test_ppo_matches_the_reference(seed, value_clip, entropy_weight, clip, dual_clip, masked):
    case = make(seed, masked=masked)
    advantages, values, old_values, returns, entropy = np.random.default_rng(seed).normal(size=(5, 2, 4, 3))
    options = {"clip": clip, "dual_clip": dual_clip, "value_clip": value_clip, "value_weight": 0.7}
    if entropy_weight is not None:
        options |= {"entropy": entropy, "entropy_weight": entropy_weight}
    arrays = (case.logp, case.old_logp, advantages, values, old_values, returns)
    loss, _ = pg.ppo_loss(*arrays, mask=case.mask, **options)
    np.testing.assert_allclose(loss, reference.ppo(*arrays, case.steps(case.mask), **options), rtol=1e-11, atol=1e-12)


def losses(case):
    """Every loss of this module as a function of `logp` (PPO's values move with it), for one batch."""
    pairs = case.pairs("all")
    rest = {"mask": case.mask, "kl": case.kl, "beta": 0.3}
    ones = np.ones(case.logp.shape)
    for level in LEVELS:
        for aggregate in AGGREGATES:
            how = {"level": level, "aggregate": aggregate}
            yield lambda x, how=how: pg.grpo_loss(x, case.old_logp, case.rewards - 1.1, **rest, **how)[0]
            yield lambda x, how=how: pg.soft_pair_grpo_loss(x, case.old_logp, pairs, **rest, **how)[0]
    yield lambda x: pg.ppo_loss(x, case.old_logp, -ones, x / 2, ones, 0.3 * ones, mask=case.mask, value_clip=0.2)[0]


def test_gradients():
    case = make(3)
    together = jax.jit(lambda logp: jnp.stack([loss(logp) for loss in losses(case)]))
    check_grads(together, (jnp.asarray(case.logp),), order=1, modes=["rev"], atol=1e-7, rtol=1e-7, eps=1e-6)


@pytest.mark.parametrize("advantage, log_ratio, gradient", [(1, 0.3, 0), (-1, -0.3, 0), (1, -0.3, -1), (-1, 0.3, 1)])
def test_clipping_is_pessimistic_and_reported(advantage, log_ratio, gradient):
    """The gradient vanishes only where the ratio already moved the way the advantage asks."""
    arguments = jnp.full((3, 2), log_ratio), jnp.zeros((3, 2)), jnp.full((3, 2), advantage)
    (_, metrics), grads = jax.value_and_grad(pg.grpo_loss, has_aux=True)(*arguments)
    np.testing.assert_allclose(grads, np.full((3, 2), gradient * np.exp(log_ratio) / 6), rtol=1e-12)
    assert metrics["clip_fraction"] == (gradient == 0)


def test_on_the_edge_of_the_clip_the_gradient_is_whole():
    advantages = jnp.array([[1.0, -1.0]])
    for clip in (0.2, 0.0):
        slope = jax.grad(lambda x: pg.grpo_loss(x, jnp.zeros((1, 2)), advantages, clip=clip)[0])(jnp.zeros((1, 2)))  # noqa: B023
        np.testing.assert_array_equal(slope, -advantages / 2)


@pytest.mark.parametrize("how", [{}, {"level": "sequence"}, {"aggregate": "token_mean"}], ids=str)
def test_the_size_of_a_mask_does_not_matter(how):
    case = make(0, masked=False)
    loss = lambda mask: pg.grpo_loss(case.logp, case.old_logp, case.rewards, mask=mask, **how)[0]  # noqa: E731
    np.testing.assert_allclose(loss(jnp.full(case.logp.shape, 0.1)), loss(None), rtol=1e-12)


@given(seed=st.integers(0, 2**16), low=st.floats(0, 0.9), high=st.floats(0, 2), dual_clip=st.floats(1.01, 4))
def test_dual_clip_and_its_gradient_match_the_reference(seed, low, high, dual_clip):
    """Gradients against central differences, wherever the reference has no corner."""
    rng = np.random.default_rng(seed)
    log_ratio, advantages, h = rng.normal(0, 1, 32), rng.normal(size=32), 1e-6
    (value, flat), gradient = DUAL(log_ratio, advantages, low, high, dual_clip)

    def expected(x):
        return -np.array([reference.clipped(*each, low, high, dual_clip) for each in zip(np.exp(x), advantages)])

    np.testing.assert_allclose(value, expected(log_ratio), rtol=1e-12)
    corners = np.abs(np.exp(log_ratio)[:, None] - [1 - low, 1 + high, dual_clip]).min(axis=1)
    slope = (expected(log_ratio + h) - expected(log_ratio - h)) / (2 * h)
    smooth = corners > 1e-4
    np.testing.assert_allclose(gradient[smooth], slope[smooth], rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(flat[smooth] > 0, slope[smooth] == 0)


@jax.jit
def DUAL(log_ratio, advantages, low, high, dual_clip):
    """Value, flat places and gradient; all traced, so that it is compiled once."""
    surrogate = lambda x: clipped_surrogate(x, advantages, (low, high), dual_clip)  # noqa: E731
    return surrogate(log_ratio), jax.grad(lambda x: jnp.sum(surrogate(x)[0]))(log_ratio)


@pytest.mark.parametrize("level", LEVELS)
def test_dual_clip_bounds_what_a_rejected_candidate_adds(level):
    """exp(800) is inf in float64: without the bound the loss is too."""
    logp, advantages = jnp.array([[800.0, 0.1]]), jnp.array([[-2.0, 1.0]])

    def loss(x, **options):
        return pg.grpo_loss(x, jnp.zeros_like(x), advantages, level=level, **options)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(logp, dual_clip=3.0)
    assert np.isinf(loss(logp)[0]) and metrics["clip_fraction"] == 0.5
    np.testing.assert_allclose(value, (6 - np.exp(0.1)) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, -np.exp(0.1) / 2]], rtol=1e-6)


@given(case=cases(shapes=SHAPES[1:]), clip=st.sampled_from([0.0, 0.2, 4.0]), level=st.sampled_from(LEVELS),
       aggregate=st.sampled_from(AGGREGATES))  # fmt: skip
def test_cispo_and_its_gradient_match_the_reference(case, clip, level, aggregate):
    how = {"clip": clip, "level": level, "aggregate": aggregate, "policy_loss": "cispo"}
    advantages, mask = case.rewards - 1.1, case.steps(case.mask)
    loss = lambda x: pg.grpo_loss(x, case.old_logp, advantages, mask=case.mask, **how)  # noqa: E731
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(case.logp))
    np.testing.assert_allclose(
        value, reference.surrogate(case.logp, case.old_logp, advantages, mask, **how), rtol=1e-11, atol=1e-12
    )
    log_ratio, lengths = (case.logp - case.old_logp) * mask, np.maximum(mask.sum(-1, keepdims=True), 1)
    if level == "sequence":
        log_ratio = np.broadcast_to(log_ratio.sum(-1, keepdims=True) / lengths, mask.shape)
    counts = {"sequence_mean": 8 * lengths, "token_mean": np.maximum(mask.sum(), 1), "constant": 24}[aggregate]
    expected = -np.minimum(np.exp(log_ratio), 1 + clip) * advantages[..., None] * mask / counts
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-14)
    capped = reference.reduce_steps((np.exp(log_ratio) > 1 + clip).astype(float), mask, aggregate, range(2))
    np.testing.assert_allclose(metrics["clip_fraction"], capped, rtol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
def test_cispo_is_the_policy_gradient_at_ratio_one_and_keeps_one_beyond(level):
    case = make(0, masked=False)

    def gradient(logp, policy_loss):
        loss = lambda x: pg.grpo_loss(x, case.old_logp, case.rewards - 1.1, level=level, policy_loss=policy_loss)[0]  # noqa: E731
        return jax.grad(loss)(jnp.asarray(logp))

    policy_gradient = np.broadcast_to((1.1 - case.rewards)[..., None] / 24, case.logp.shape)
    np.testing.assert_allclose(gradient(case.old_logp, "cispo"), policy_gradient, rtol=1e-12)
    np.testing.assert_allclose(gradient(case.old_logp, "clip"), policy_gradient, rtol=1e-12)
    good = case.rewards > 1.1
    np.testing.assert_allclose(gradient(case.old_logp + 800, "cispo"), 1.2 * policy_gradient, rtol=1e-12)
    assert not gradient(case.old_logp + 1, "clip")[good].any() and good.any()


def test_only_logp_carries_a_gradient():
    case = make(1)

    def loss(old_logp, advantages, weight):
        pairs = case.pairs("all")._replace(weight=weight)
        soft, _ = pg.soft_pair_grpo_loss(case.logp, old_logp, pairs, mask=case.mask)
        return soft + pg.grpo_loss(case.logp, old_logp, advantages, mask=case.mask)[0]

    gradients = jax.grad(loss, argnums=(0, 1, 2))(case.old_logp, jnp.asarray(case.rewards), case.pairs("all").weight)
    assert not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("aggregate", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("level", LEVELS)
def test_masked_equals_sliced(level, aggregate):
    case = make(0, masked=False)
    mask = np.broadcast_to(np.arange(3) < 2, case.logp.shape).astype(float)
    how = {"level": level, "aggregate": aggregate, "beta": 0.3}
    full = pg.grpo_loss(case.logp, case.old_logp, case.rewards, mask=mask, kl=case.kl, **how)
    short = pg.grpo_loss(case.logp[..., :2], case.old_logp[..., :2], case.rewards, kl=case.kl[..., :2], **how)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), full, short)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_masked_is_never_read(level):
    """NaN in every masked entry of every input leaves values and gradients as they are."""
    case = make(5)
    rng = np.random.default_rng(0)
    clean = [case.logp, case.old_logp, rng.normal(size=case.logp.shape), case.kl]
    dirty = [np.where(case.mask > 0, x, np.nan) for x in clean]

    def grpo(logp, old_logp, advantages, kl):
        return pg.grpo_loss(logp, old_logp, advantages, mask=case.mask, kl=kl, beta=0.3, level=level)

    def ppo(logp, old_logp, advantages, kl):
        return pg.ppo_loss(
            logp, old_logp, advantages, logp, old_logp, advantages, mask=case.mask, value_clip=0.2, entropy=kl
        )

    for loss in (grpo, ppo):
        results = [jax.value_and_grad(loss, has_aux=True)(*map(jnp.asarray, inputs)) for inputs in (clean, dirty)]
        jax.tree.map(np.testing.assert_array_equal, *results)


def test_an_entropy_without_a_weight_is_not_differentiated():
    """Of a policy whose entropy has no slope to speak of."""
    zeros = jnp.zeros((1, 2))

    def loss(x, **more):
        return pg.ppo_loss(x, zeros, zeros + 1, zeros, zeros, zeros, entropy=jnp.sqrt(0 * x), **more)[0]

    np.testing.assert_array_equal(jax.grad(loss)(zeros), [[-0.5, -0.5]])
    assert np.isnan(jax.grad(loss)(zeros, entropy_weight=0.1)).all()


@pytest.mark.parametrize("policy_loss", ["clip", "cispo"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_left_out_is_not_read(level, policy_loss):
    """A candidate of weight 0 and a group without a pair: their ratios and KLs may overflow."""
    case = make(5)
    alive = jnp.ones(case.logp.shape[:2]).at[0].set(0.0)
    far = jnp.zeros(case.logp.shape).at[0].set(2000.0)
    pairs = pg.pairs_from_rewards(jnp.asarray(case.rewards).at[0].set(0.0), scheme="all")

    def grpo(logp, kl):
        how = {"candidate_weight": alive, "level": level, "policy_loss": policy_loss}
        return pg.grpo_loss(logp, case.old_logp, case.rewards, mask=case.mask, kl=kl, beta=0.3, **how)

    def soft(logp, kl):
        how = {"level": level, "policy_loss": policy_loss}
        return pg.soft_pair_grpo_loss(logp, case.old_logp, pairs, mask=case.mask, kl=kl, beta=0.3, **how)

    for loss in (grpo, soft):
        run = jax.value_and_grad(loss, (0, 1), has_aux=True)
        (value, metrics), slopes = run(case.logp + far, jnp.where(far > 0, jnp.inf, case.kl))
        (want, told), expected = run(jnp.asarray(case.logp), jnp.asarray(case.kl))
        del metrics["approx_kl"], told["approx_kl"]  # of all steps
        jax.tree.map(np.testing.assert_array_equal, (value, metrics, slopes), (want, told, expected))


def test_candidates_and_groups_may_be_permuted():
    case = make(2)
    order = np.array([2, 0, 3, 1])
    for permute in (lambda x: x[:, order], lambda x: x[::-1]):
        loss = [
            pg.soft_pair_grpo_loss(
                f(case.logp), f(case.old_logp), pg.pairs_from_rewards(jnp.asarray(f(case.rewards)), scheme="all"),
                mask=f(case.mask), kl=f(case.kl), beta=0.3,
            )[0]
            for f in (lambda x: x, permute)
        ]  # fmt: skip
        np.testing.assert_allclose(*loss, rtol=1e-12)


def test_a_group_without_a_pair_changes_nothing():
    case, flat = make(0, ties=False), make(1)
    together = [np.concatenate([a, b]) for a, b in zip(case[:4], flat[:4])]
    pairs = pg.pairs_from_rewards(jnp.concatenate([case.rewards, jnp.ones((2, 4))]))

    def loss(logp, old_logp, mask, kl, pairs, aggregate):
        return pg.soft_pair_grpo_loss(logp, old_logp, pairs, mask=mask, kl=kl, beta=0.3, aggregate=aggregate)[0]

    for aggregate in AGGREGATES:
        value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=5)(*together, pairs, aggregate)
        np.testing.assert_allclose(value, loss(*case[:4], case.pairs("matched"), aggregate), rtol=1e-12)
        assert not gradient[2:].any()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_approx_kl_is_one_figure_for_every_loss(aggregate, level):
    """k3 of each step, the mean over the steps of all groups, those without a pair too."""
    case = make(0)
    pairs = case.pairs("matched")
    pairs = pairs._replace(weight=pairs.weight.at[0].set(0.0))
    shared, rules = {"mask": case.mask}, {"level": level, "aggregate": aggregate, "max_length": 50}
    losses = [
        pg.grpo_loss(case.logp, case.old_logp, case.rewards, candidate_weight=case.rewards > 0, **shared, **rules),
        pg.soft_pair_grpo_loss(case.logp, case.old_logp, pairs, kl=case.kl, **shared, **rules),
        pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, 0.1, aggregate=aggregate, **shared),
        pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, 0.1, kl=case.kl, **shared),
        pg.ppo_loss(*(case[0], case[1]), *[jnp.zeros_like(case.logp)] * 4, mask=case.mask),
    ]
    log_ratio = np.asarray(case.logp - case.old_logp)[np.asarray(case.mask) > 0]
    expected = np.mean(np.exp(log_ratio) - 1 - log_ratio)
    np.testing.assert_allclose([metrics["approx_kl"] for _, metrics in losses], expected, rtol=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_clipped_sample_beyond_the_range_of_exp_has_gradient_zero(level):
    """exp(800) is inf in float64; clipping makes the loss finite, and its gradient must be too."""
    logp, advantages = jnp.array([[800.0, 0.1]]), jnp.array([[1.0, -1.0]])

    def loss(x):
        return pg.grpo_loss(x, jnp.zeros_like(x), advantages, level=level)[0]

    value, gradient = jax.value_and_grad(loss)(logp)
    np.testing.assert_allclose(value, (-1.2 + np.exp(0.1)) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.0, np.exp(0.1) / 2]], rtol=1e-6)


def test_an_advantage_of_zero_takes_no_part_whatever_the_ratio():
    def policy(x):
        return pg.grpo_loss(x, jnp.zeros_like(x), jnp.array([[0.0, 1.0]]))[0]

    loss, gradient = jax.value_and_grad(policy)(jnp.array([[800.0, 0.0]]))
    assert loss == -0.5 and gradient.tolist() == [[0.0, -0.5]]
