import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import AGGREGATES, SCHEMES, cases, make
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")
FITS = ("reverse", "forward")
CANDIDATES = ("empirical", "likelihood")


@given(
    case=cases(),
    scheme=st.sampled_from(SCHEMES),
    delta=st.sampled_from([0.0, 0.02, 0.3, 5.0]),
    trust=st.sampled_from([{"alpha": 0.7}, {"trust_region": "lagrangian", "multiplier": 1.3}]),
    with_kl=st.booleans(),
    beta=st.sampled_from([0.0, 0.05, 10.0]),
    fit=st.sampled_from(FITS),
    candidates=st.sampled_from(CANDIDATES),
    aggregate=st.sampled_from(AGGREGATES),
)
def test_hard_matches_the_reference(case, scheme, delta, trust, with_kl, **options):
    pairs, options = case.pairs(scheme), options | trust
    kl = case.kl if with_kl else None
    loss, metrics = pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, delta, mask=case.mask, kl=kl, **options)
    expected = reference.hard(
        case.steps(case.logp), case.steps(case.old_logp), reference.listed(pairs), delta, case.steps(case.mask),
        kl=None if kl is None else case.steps(kl), **options,
    )  # fmt: skip
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-11)
    assert (f"{'kl' if with_kl else 'candidate_kl'}_active" in metrics) == ("alpha" in trust)


@given(
    case=cases(shapes=((3, 2, None), (3, 4, None))),
    scheme=st.sampled_from(SCHEMES),
    delta=st.sampled_from([0.0, 0.02, 0.3, 5.0]),
    floor=st.sampled_from([1e-3, 0.1]),
)
def test_target_matches_the_reference_and_is_a_distribution(case, scheme, delta, floor):
    pairs = case.pairs(scheme)
    p0 = np.exp(case.logp) / np.exp(case.logp).sum(axis=-1, keepdims=True)
    q = pg.hard_pair_target(p0, pairs, delta, floor=floor)
    lists = reference.listed(pairs)
    expected = [reference.hard_target(p, group, delta, floor) for p, group in zip(p0, lists)]
    np.testing.assert_allclose(q, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.sum(q, axis=-1), 1, rtol=1e-14)
    assert np.all(q >= np.minimum(p0, floor))


def test_target_of_overlapping_pairs():
    """By hand: two winners ask 0.2 each of candidate 0 (0.3, floor 0.1), which gives each 0.1; 1 passes 0.2 on to 2."""
    pairs = pg.Pairs(jnp.asarray([[1, 2, 2]]), jnp.asarray([[0, 0, 1]]), jnp.ones((1, 3)))
    q = pg.hard_pair_target(jnp.asarray([[0.3, 0.4, 0.3]]), pairs, 0.2, floor=0.1)
    np.testing.assert_allclose(q, [[0.1, 0.3, 0.6]], rtol=1e-12)


def test_target_keeps_the_floor_where_rounding_would_cross_it():
    pairs = pg.Pairs(jnp.asarray([[0]]), jnp.asarray([[1]]), jnp.ones((1, 1), jnp.float32))
    for floor in (1e-3, 1e-8):
        q = pg.hard_pair_target(jnp.full((1, 2), 0.5, jnp.float32), pairs, 10.0, floor=floor)
        assert q.dtype == jnp.float32 and q[0, 1] >= np.float32(floor)


def test_projection_shrinks_each_group_to_the_radius():
    case = make(0, (3, 4, None), masked=False, ties=False)
    p0 = np.asarray(jax.nn.softmax(case.logp))
    pairs = case.pairs("all")
    project = jax.jit(lambda max_kl: pg.hard_pair_target(p0, pairs, 0.1, max_kl=max_kl))
    for max_kl in (0.0, 1e-3, 0.02, 10.0):
        q = np.asarray(project(max_kl))
        expected = [reference.hard_target(p, g, 0.1, max_kl=max_kl) for p, g in zip(p0, reference.listed(pairs))]
        np.testing.assert_allclose(q, expected, atol=1e-9)
        assert all(reference.kl_divergence(*rows) <= max_kl + 1e-12 for rows in zip(q, p0))


def test_loss_fits_the_projected_target():
    case = make(4)
    pairs = case.pairs("all")
    arguments = case.logp, case.old_logp
    for beta in (1e-3, 0.05):
        options = {"beta": beta, "project_target": True}
        loss, metrics = pg.hard_pair_grpo_loss(*arguments, pairs, 0.2, mask=case.mask, **options)
        lists = reference.listed(pairs)
        np.testing.assert_allclose(loss, reference.hard(*arguments, lists, 0.2, case.mask, **options), rtol=1e-7)
        assert metrics["target_mass"] < pg.hard_pair_grpo_loss(*arguments, pairs, 0.2, beta=beta)[1]["target_mass"]


@pytest.mark.parametrize("length_normalize", [False, True])
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_candidate_distributions(candidates, length_normalize):
    case = make(0)
    how = {"mask": case.mask, "candidates": candidates, "length_normalize": length_normalize}
    log_p0, log_p = pg.candidate_log_probs(case.logp, case.old_logp, **how)
    steps = np.maximum(case.mask.sum(-1), 1) if length_normalize else 1
    old, new = ((x * case.mask).sum(-1) / steps for x in (case.old_logp, case.logp))
    p0 = np.exp(old) if candidates == "likelihood" else np.ones((2, 4))
    for actual, weights in ((log_p0, p0), (log_p, p0 * np.exp(new - old))):
        np.testing.assert_allclose(np.exp(actual), weights / weights.sum(-1, keepdims=True), rtol=1e-12)
    same = pg.candidate_log_probs(case.old_logp, case.old_logp, **how)
    np.testing.assert_allclose(*same, rtol=1e-14)


def test_length_normalize_reaches_the_loss():
    case = make(0, masked=False)
    pairs, summed = case.pairs("all"), lambda x: x.sum(-1) / 3
    long, metrics = pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, 0.02, length_normalize=True)
    short, expected = pg.hard_pair_grpo_loss(summed(case.logp), summed(case.old_logp), pairs, 0.02)
    assert metrics.pop("approx_kl") != expected.pop("approx_kl")  # of three steps, or of one
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), (long, metrics), (short, expected))


def test_gradients():
    case = make(1)
    pairs, options = case.pairs("all"), []
    for fit in FITS:
        for candidates in CANDIDATES:
            options += [{"fit": fit, "candidates": candidates}, {"fit": fit, "candidates": candidates, "beta": 10.0}]
    options += [{"kl_scale": 1.0}, {"trust_region": "lagrangian", "multiplier": 2.0}, {"project_target": True}]

    @jax.jit
    def losses(logp):
        def one(kl_scale=None, **how):
            kl = None if kl_scale is None else kl_scale * pg.kl_k3(logp, case.old_logp)
            return pg.hard_pair_grpo_loss(logp, case.old_logp, pairs, 0.1, mask=case.mask, kl=kl, **how)[0]

        return jnp.stack([one(**how) for how in options])

    check_grads(losses, (jnp.asarray(case.logp),), order=1, modes=["rev"], atol=1e-7, rtol=1e-7, eps=1e-6)


def test_only_logp_carries_a_gradient():
    case = make(0)
    pairs = case.pairs("all")

    def loss(old_logp, multiplier, weight, delta):
        return pg.hard_pair_grpo_loss(
            case.logp, old_logp, pairs._replace(weight=weight), delta, mask=case.mask, candidates="likelihood",
            trust_region="lagrangian", multiplier=multiplier,
        )[0]  # fmt: skip

    others = (case.old_logp, 1.0, pairs.weight, 0.1)
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(*map(jnp.asarray, others))
    assert not any(np.any(gradient) for gradient in gradients)


def test_what_is_masked_is_never_read_and_equals_sliced():
    case = make(0, masked=False)
    mask = np.broadcast_to(np.arange(3) < 2, case.logp.shape).astype(float)
    clean = [case.logp, case.old_logp, case.kl]
    dirty = [np.where(mask > 0, x, np.nan) for x in clean]
    pairs = case.pairs("matched")

    def loss(logp, old_logp, kl, mask):
        return pg.hard_pair_grpo_loss(logp, old_logp, pairs, 0.1, mask=mask, kl=kl)

    run = jax.value_and_grad(loss, has_aux=True)
    (result, full), (short, sliced) = run(*dirty, mask), run(*(x[..., :2] for x in clean), None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), result, short)
    np.testing.assert_allclose(full[..., :2], sliced, rtol=1e-12)
    assert not full[..., 2:].any()


@pytest.mark.parametrize("policy_kl", [False, True])
@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("candidates", ["empirical", "likelihood"])
def test_a_group_without_a_pair_is_not_read(candidates, made, policy_kl):
    case = jax.tree.map(jnp.asarray, make(0))
    pairs = pg.pairs_from_rewards(case.rewards.at[0].set(0.0))
    target = jnp.full(case.rewards.shape, 1 / case.rewards.shape[1])

    def loss(logp, kl, target):
        how = {"candidates": candidates, "kl": kl if policy_kl else None, "target": target if made else None}
        return pg.hard_pair_grpo_loss(logp, case.old_logp, pairs, 0.1, mask=case.mask, **how)

    run = jax.value_and_grad(loss, (0, 1), has_aux=True)
    dirty = (x.at[0].set(nothing) for x, nothing in zip((case.logp, case.kl, target), (-jnp.inf, jnp.inf, jnp.nan)))
    ((value, metrics), slope), ((want, told), expected) = run(*dirty), run(case.logp, case.kl, target)
    del metrics["approx_kl"], told["approx_kl"]  # of all steps
    jax.tree.map(np.testing.assert_array_equal, (value, metrics, slope), (want, told, expected))


def test_candidates_and_groups_may_be_permuted():
    case = make(2, (2, 4, 3))
    order = np.array([2, 0, 3, 1])
    losses = [
        pg.hard_pair_grpo_loss(
            f(case.logp), f(case.old_logp), pg.pairs_from_rewards(jnp.asarray(f(case.rewards)), scheme="all"), 0.1,
            mask=f(case.mask), candidates="likelihood",
        )[0]
        for f in (lambda x: x, lambda x: x[:, order], lambda x: x[::-1])
    ]  # fmt: skip
    np.testing.assert_allclose(losses, losses[0], rtol=1e-12)


def test_hinge_acts_on_the_mean_kl():
    """One group far beyond beta and one at 0: their mean, not each group, is held against beta."""
    logp, old_logp = jnp.asarray([[2.0, 0.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    pairs = pg.chosen_rejected_pairs(2)
    far = reference.kl_divergence(np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum(), [0.5, 0.5])
    for beta in (0.4 * far, 0.6 * far):
        loss, metrics = pg.hard_pair_grpo_loss(logp, old_logp, pairs, 0.1, beta=beta, alpha=3.0)
        np.testing.assert_allclose(loss - metrics["fit"], 3 * max(far / 2 - beta, 0), atol=1e-12)
        assert metrics["candidate_kl_active"] == (far / 2 > beta)


def test_a_kl_per_candidate_counts_for_all_its_steps():
    case = make(0, (2, 4, 3))
    kl = case.kl[..., 0]
    options = {"mask": case.mask, "alpha": 2.0, "beta": 0.0}
    arguments = case.logp, case.old_logp, case.pairs("all"), 0.1
    wide = np.broadcast_to(kl[..., None], case.logp.shape)
    losses = [pg.hard_pair_grpo_loss(*arguments, kl=x, **options)[0] for x in (kl, wide)]
    assert losses[0] == losses[1]


def test_an_impossible_candidate_outside_all_pairs_keeps_its_probability():
    """A likelihood of e^-2000 is 0 as a float; it takes no mass, and nothing is nan."""
    old_logp = jnp.asarray([[-1.0, -1.0, -2000.0]])
    pairs = pg.Pairs(jnp.asarray([[0]]), jnp.asarray([[1]]), jnp.ones((1, 1)))
    for fit in FITS:
        value, gradient = jax.value_and_grad(
            lambda x, fit=fit: pg.hard_pair_grpo_loss(x, old_logp, pairs, 0.1, fit=fit, candidates="likelihood")[0]
        )(old_logp)
        pair = pg.hard_pair_grpo_loss(old_logp[:, :2], old_logp[:, :2], pairs, 0.1, fit=fit)[0]
        np.testing.assert_allclose(value, pair, rtol=1e-12)
        assert np.all(np.isfinite(gradient))


def test_multiplier_grows_above_the_radius_and_shrinks_below():
    update = lambda kl, start=2.0, **how: float(pg.update_multiplier(start, kl, 0.01, **how))  # noqa: E731
    assert update(0.01) == 2.0
    np.testing.assert_allclose(update(0.015), 2 * np.exp(0.1 * 0.5), rtol=1e-12)
    np.testing.assert_allclose([update(9.0), update(0.0)], [2 * np.exp(0.1), 2 * np.exp(-0.1)], rtol=1e-12)
    np.testing.assert_allclose(update(9.0, rate=0.5), 2 * np.exp(0.5), rtol=1e-12)
    with pytest.raises(ValueError, match=r"beta must be > 0, got -0\.01"):
        pg.update_multiplier(2.0, 0.05, -0.01)
    assert update(9.0, start=9.9, largest=10.0) == 10.0 and update(0.0, start=0.1001, largest=10.0) == 0.1
    kept = pg.update_multiplier(jnp.float32(2.0), jnp.float64(0.05), 0.01)
    assert kept.dtype == jnp.float32  # in a state of float32 that is saved, and scanned over


@pytest.mark.parametrize("project_target", [False, True])
def test_a_target_made_once_gives_the_same_loss_and_gradient(project_target):
    rewards = jnp.array([[1.0, 3.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 5.0, 1.0]])
    pairs, old = pg.pairs_from_rewards(rewards, scheme="all"), jnp.log(jnp.full((3, 4), 0.25))
    logp = old + jax.random.normal(jax.random.key(0), (3, 4))
    p0 = jnp.exp(pg.candidate_log_probs(old, old)[0])
    options = {"beta": 0.02, "project_target": project_target}
    target = pg.hard_pair_target(p0, pairs, 0.1, max_kl=0.02 if project_target else None)

    def loss(x, **more):
        return pg.hard_pair_grpo_loss(x, old, pairs, 0.1, **options, **more)[0]

    np.testing.assert_array_equal(loss(logp), loss(logp, target=target))
    np.testing.assert_array_equal(jax.grad(loss)(logp), jax.grad(loss)(logp, target=target))
    assert loss(logp) != loss(logp, target=p0)
    with pytest.raises(ValueError, match="target must be"):
        loss(logp, target=target[:1])


@pytest.mark.parametrize("made", [False, True])
def test_masses_are_half_the_l1_distances_from_p0(made):
    case = make(5, (3, 4, None), masked=False, ties=False)
    pairs, p0 = case.pairs("matched"), np.full(4, 0.25)
    pairs = pairs._replace(weight=pairs.weight.at[1].set(0))  # a group without a pair counts nowhere
    q = np.array([reference.hard_target(p0, group, 0.1) for group in reference.listed(pairs)])
    rho = np.exp(case.logp - case.old_logp)
    p = rho / rho.sum(-1, keepdims=True)
    target = jnp.asarray(q) if made else None
    metrics = pg.hard_pair_grpo_loss(case.logp, case.old_logp, pairs, 0.1, target=target)[1]
    for name, x in (("target_mass", q), ("moved_mass", p)):
        np.testing.assert_allclose(metrics[name], np.mean(np.abs(x - p0).sum(-1)[[0, 2]] / 2), rtol=1e-12)


@pytest.mark.parametrize("max_kl", [0.0, 1e-10, 1e-8, 1e-5, 1e-3, 0.02])
def test_projection_finds_a_small_radius_in_float32(max_kl):
    """Within the rounding of q, where the KL itself is far below that of 1."""
    case = make(0, (3, 4, None), masked=False, ties=False)
    p0 = jax.nn.softmax(jnp.asarray(case.logp, jnp.float32))
    pairs = case.pairs("all")
    q = pg.hard_pair_target(p0, pairs._replace(weight=pairs.weight.astype(jnp.float32)), 0.1, max_kl=max_kl)
    exact = np.asarray(p0, np.float64)
    exact = exact / exact.sum(-1, keepdims=True)
    expected = [reference.hard_target(p, g, 0.1, max_kl=max_kl) for p, g in zip(exact, reference.listed(pairs))]
    assert q.dtype == jnp.float32
    np.testing.assert_allclose(q, expected, atol=1.5e-7)
    if not max_kl:
        np.testing.assert_array_equal(q, p0)
