"""Methods as objects: bounds, what they say of themselves, and that each minimises the loss it names."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax import core
from pairgrpo_jax.control import Collection, ControlConfig
from pairgrpo_jax.lm.alignment import AlignConfig, Critic, Samples
from pairgrpo_jax.methods import (
    METHODS,
    NAMES,
    Adaptive,
    Advantages,
    Dpo,
    Grpo,
    HardPair,
    Ipo,
    Kto,
    Labels,
    Likelihoods,
    Method,
    Orpo,
    Ppo,
    RankGrpo,
    SimPo,
    SoftPair,
    Verdict,
    method_class,
)
from pairgrpo_jax.methods.method import terms_of

EACH = pytest.mark.parametrize("cls", METHODS, ids=NAMES)
B, K, T = 5, 4, 6
KEY, ADAPTIVE = jax.random.key(0), Adaptive(jnp.int32(3), jnp.float32(1.5))
RNG = np.random.default_rng(1)
LENGTHS = RNG.integers(1, T + 1, (B, K))
MASK = jnp.asarray(np.arange(T) < LENGTHS[..., None], jnp.float32)
LOGP, OLD, REF = (jnp.asarray(RNG.normal(-2, 0.3, (B, K, T)), jnp.float32) for _ in range(3))
SCORES = jnp.asarray(RNG.normal(size=(B, K)), jnp.float32)
STEPS = jnp.asarray(RNG.normal(size=(B, K, T)), jnp.float32)
ALIVE = jnp.array([1.0, 0.0, 1.0, 1.0, 1.0])
ALL = Likelihoods(LOGP, OLD, REF, MASK)
OTHERS = ALL._replace(logp=REF + 0.2)  # replies to other prompts: the reference point is above 0
PAIRS = core.chosen_rejected_pairs(B)
NAN = float("nan")

# What each field refuses.
REFUSED = {
    "clip": (-0.1, NAN, "wide"),
    "clip_high": (-0.1, NAN, "wide"),
    "dual_clip": (1.0, 0.5, NAN, "wide"),
    "level": ("word", None),
    "policy_loss": ("reinforce", None),
    "aggregate": ("sum", None),
    "baseline": ("median", None),
    "scale": ("std", None),
    "scheme": ("best", None),
    "margin": (-0.1, NAN, None),
    "delta_0": (-0.1, NAN, None),
    "delta_gamma": (0.0, 1.01, -0.5, NAN),
    "fit": ("both", None),
    "trust_region": ("ball", None),
    "hinge": ("groups", None),
    "alpha": (-0.1, NAN, None),
    "beta": (-0.1, NAN, None),
    "label_smoothing": (-0.1, 0.5, NAN),
    "weight": (-0.1, NAN, None),
    "gamma": (-0.1, NAN, None),
    "desirable_weight": (-0.1, NAN, None),
    "undesirable_weight": (-0.1, NAN, None),
}
SWITCHES = {"project_target", "length_normalize"}
# What each field takes beside its default, ends of its bounds among them.
TAKEN = {
    "clip": (0.0, 2),
    "clip_high": (0.0, 0.5),
    "dual_clip": (1.01, 3.0),
    "level": ("sequence",),
    "policy_loss": ("cispo",),
    "aggregate": ("token_mean", "constant"),
    "baseline": ("leave_one_out",),
    "scale": ("batch", "none"),
    "scheme": ("best_worst", "matched", "bradley_terry", "margin_weighted"),
    "margin": (0.3,),
    "delta_0": (0.0, 0.5),
    "delta_gamma": (1.0, 0.5),
    "fit": ("forward",),
    "trust_region": ("lagrangian",),
    "hinge": ("tokens",),
    "alpha": (0.0, 5.0),
    "beta": (0.7, np.float32(0.25)),
    "label_smoothing": (0.49,),
    "weight": (0.0, 3.0),
    "gamma": (0.0, 3.0),
    "desirable_weight": (0.0, 1.33),
    "undesirable_weight": (0.0, 2.0),
    "project_target": (True,),
    "length_normalize": (True,),
}
ABOVE_0 = (Ipo, SimPo, Kto)  # beta is more than 0


@EACH
def test_every_field_refuses_what_is_out_of_its_bounds(cls):
    for field in dataclasses.fields(cls):
        assert field.name in REFUSED.keys() | SWITCHES
        bad = REFUSED.get(field.name, ()) + ((0.0,) if field.name == "beta" and cls in ABOVE_0 else ())
        for value in bad:
            with pytest.raises(ValueError, match=rf"^{field.name}\b"):
                cls(**{field.name: value})
            with pytest.raises(ValueError, match=rf"^{field.name}\b"):
                cls().replace(**{field.name: value})


@EACH
def test_every_field_takes_the_ends_of_its_bounds_and_makes_another_value(cls):
    for field in dataclasses.fields(cls):
        ends = TAKEN[field.name] + ((0.0,) if field.name == "beta" and cls not in ABOVE_0 else ())
        base = cls(hinge="tokens") if (cls, field.name) == (HardPair, "aggregate") else cls()
        for value in ends:
            made, again = base.replace(**{field.name: value}), dataclasses.replace(base, **{field.name: value})
            assert getattr(made, field.name) == value and made == again and hash(made) == hash(again)
            assert made != base and made.replace(**{field.name: field.default}) == base


def test_a_learned_multiplier_needs_a_radius():
    assert HardPair(beta=0.0).beta == 0
    with pytest.raises(ValueError, match="beta must be > 0 with trust_region"):
        HardPair(beta=0.0, trust_region="lagrangian")
    with pytest.raises(ValueError, match="beta must be > 0 with project_target=True"):
        HardPair(beta=0.0, project_target=True)


@pytest.mark.parametrize("changes", [{"alpha": 2.0}, {"hinge": "tokens"}], ids="/".join)
def test_settings_without_effect_beside_hards_multiplier_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"^{name}=.* has no effect with trust_region"):
        HardPair(**changes).replace(trust_region="lagrangian")


def test_hard_averages_over_steps_only_where_a_kl_of_steps_is_in_its_loss():
    for needed in ({"hinge": "tokens"}, {"trust_region": "lagrangian"}):
        assert HardPair(aggregate="token_mean", **needed).aggregate == "token_mean"
    with pytest.raises(ValueError, match=r"^aggregate='token_mean' has no effect without a KL of tokens"):
        HardPair(aggregate="token_mean")


@EACH
def test_a_method_is_frozen(cls):
    for name in ("name", dataclasses.fields(cls)[0].name):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(cls(), name, "other")
    with pytest.raises(TypeError, match="nose"):
        cls().replace(nose=1)


def test_methods_of_two_classes_are_never_equal():
    assert len({cls() for cls in METHODS}) == len(METHODS) == len(set(NAMES))


@EACH
def test_a_method_is_a_static_argument_and_its_fields_may_be_traced(cls):
    """One compilation for equal methods; an array passes unchecked, so that settings can be mapped over."""
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def loss(method, logp):
        traces.append(method)
        return value_of(method, logp)

    assert loss(cls(), LOGP) == loss(cls(), LOGP) and len(traces) == 1
    several = jnp.array([0.05, 0.15])
    numbers = [f.name for f in dataclasses.fields(cls) if type(f.default) is float]
    assert numbers
    for name in numbers:
        mapped = jax.vmap(lambda x: value_of(cls().replace(**{name: x}), LOGP))(several)  # noqa: B023
        single = [value_of(cls().replace(**{name: float(x)}), LOGP) for x in several]
        np.testing.assert_allclose(mapped, single, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.isfinite(mapped).all()


@EACH
def test_a_class_is_found_by_its_name(cls):
    assert method_class(cls.name) is cls is cls.named(cls.name)


@pytest.mark.parametrize(
    ("name", "near"),
    [("grop", "grpo"), ("Hard", "hard"), ("simp0", "simpo"), ("dop", "dpo"), ("ppo2", "ppo"), ("softy", "soft")],
)
def test_an_unknown_name_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"method '{name}' is unknown; did you mean {near}\?"):
        method_class(name)


def test_a_name_near_to_none_suggests_none():
    with pytest.raises(ValueError, match=r"method 'sarsa' is unknown \(grpo, ") as error:
        method_class("sarsa")
    assert all(name in str(error.value) for name in NAMES) and "mean" not in str(error.value)


# What a method says of itself.


def verdict_of(cls, alive=None):
    """What a trainer knows: a critic's advantages, rewards, or a data set's pairs."""
    scores = STEPS * MASK if cls.critic else SCORES
    return Verdict(scores if cls.online else None, None if cls.online else PAIRS, alive, MASK, OTHERS)


def value_of(method, logp, alive=None, likelihoods=ALL):
    signal = method.signal(verdict_of(type(method), alive), KEY, ADAPTIVE)
    return core.evaluate(method.objective(likelihoods._replace(logp=logp), signal, ADAPTIVE))[0]


def works(function, *errors):
    """Whether it gives a result; only the errors named count as a refusal."""
    try:
        function()
    except errors:
        return False
    return True


@EACH
def test_only_methods_that_learn_online_are_taken_where_samples_are(cls):
    critic = Critic() if cls.critic else None
    if cls.online:
        assert ControlConfig(cls()).method == AlignConfig(cls(), Samples(), critic=critic).method == cls()
        return
    with pytest.raises(ValueError, match=rf"method {cls.name} learns from a data set's pairs"):
        ControlConfig(cls())
    with pytest.raises(ValueError, match=rf"^samples: {cls.name} learns from a data set's pairs"):
        AlignConfig(cls(), Samples(), critic=critic)


@EACH
def test_only_methods_that_learn_offline_are_taken_without_samples(cls):
    critic = Critic() if cls.critic else None
    if cls.offline:
        assert AlignConfig(cls(), None, critic=critic).group_size == 2
        return
    with pytest.raises(ValueError, match=rf"^samples=None: {cls.name} learns from its own samples"):
        AlignConfig(cls(), None, critic=critic)


@EACH
def test_a_critic_is_there_for_those_that_need_one(cls):
    samples = Samples() if cls.online else None
    for critic in (None, Critic()):
        fits = (critic is not None) == cls.critic
        assert works(lambda c=critic: AlignConfig(cls(), samples, critic=c), ValueError) == fits
    if cls.online:
        forked = Collection("reward_to_go", fork=True)
        assert works(lambda: ControlConfig(cls(), forked), ValueError) != cls.critic


@EACH
def test_the_objective_reads_the_old_policy_and_the_reference_if_it_says_so(cls):
    for name, said in (("old_logp", cls.ratio), ("ref_logp", cls.reference)):
        without = functools.partial(value_of, cls(), LOGP, likelihoods=ALL._replace(**{name: None}))
        assert works(without, TypeError, ValueError, AttributeError) != said, name
        changed = value_of(cls(), LOGP, likelihoods=ALL._replace(**{name: getattr(ALL, name) * 0.9}))
        assert (abs(float(changed - value_of(cls(), LOGP))) > 1e-6) == said, name


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls.comparisons], ids=lambda cls: cls.name)
def test_a_judges_pairs_are_read_in_their_direction(cls):
    """With two pairs a group: the indices turned round are the candidates turned round."""

    def turned(tree):
        return jax.tree.map(lambda x: x if x is None or x.ndim < 2 else x[:, ::-1], tree)

    def loss(pairs, likelihoods):
        signal = cls().signal(Verdict(None, pairs, None, likelihoods.mask, OTHERS), KEY, ADAPTIVE)
        return core.evaluate(cls().objective(likelihoods, signal, ADAPTIVE))[0]

    first, second = jnp.zeros((B, 2), jnp.int32), jnp.tile(jnp.array([[1, 2]]), (B, 1))
    ones = jnp.ones((B, 2))
    there, back = core.Pairs(first, second, ones), core.Pairs(K - 1 - first, K - 1 - second, ones)
    np.testing.assert_allclose(loss(back, turned(ALL)), loss(there, ALL), rtol=1e-5)
    assert abs(float(loss(core.Pairs(second, first, ones), ALL) - loss(there, ALL))) > 1e-4


def test_a_method_of_ones_own_is_declared_as_one():
    """What would be forgotten without a word: a field that config.json has not, a part of a method, a name."""

    class Nameless(Grpo):
        name = None

    class Undecorated(Grpo):
        rejected: float = 0.5

    class Renamed(Grpo):
        name = "renamed"

    @dataclasses.dataclass(frozen=True)
    class Unfinished(Method):
        name = "unfinished"

    with pytest.raises(TypeError, match=r"Nameless has no name, which config\.json keeps"):
        Nameless()
    for options in ({}, {"rejected": 0.3}):
        with pytest.raises(TypeError, match=r"Undecorated: write @dataclass\(frozen=True\) above it"):
            Undecorated(**options)
    with pytest.raises(TypeError, match=r"objective.*signal|signal.*objective"):
        Unfinished()
    assert Renamed(clip=0.1).clip == 0.1


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda x: (jnp.mean(x), {}), "must be a dict of Terms, got tuple; a function under @core.loss"),
        (lambda x: {"surrogate": jnp.mean(x)}, "surrogate must be a Term"),
        (lambda x: {"surrogate": core.mean_term(x)}, "no term has a weight"),
    ],
)
def test_what_is_no_objective_is_named(objective, message):
    @dataclasses.dataclass(frozen=True)
    class Own(Grpo):
        name = "own"

        def objective(self, likelihoods, signal, adaptive):
            return objective(likelihoods.logp)

    with pytest.raises(ValueError, match=message):
        terms_of(Own(), ALL, Own().signal(Verdict(SCORES), KEY, ADAPTIVE), ADAPTIVE)


def test_a_verdict_that_does_not_do_is_named():
    with pytest.raises(ValueError, match="scores or mask: hard needs one of them"):
        HardPair().signal(Verdict(pairs=PAIRS), KEY, ADAPTIVE)
    with pytest.raises(ValueError, match="candidates=1000 must be below 1000 with hard"):
        HardPair().check_group(1000)
    HardPair().check_group(999)


@pytest.mark.parametrize("alive", [None, jnp.array([1.0, 0, 1, 1, 1])])
@pytest.mark.parametrize("mask", [None, MASK])
def test_ppo_normalises_scores_of_candidates_and_leaves_equal_ones_at_zero(mask, alive):
    def signal(scores):
        return Ppo().signal(Verdict(scores, None, alive, mask), KEY, ADAPTIVE).advantages

    scores = jnp.asarray(RNG.normal(size=(B, K)), jnp.float32)
    counted = jnp.ones((B, K, T)) if mask is None else mask
    counted = counted if alive is None else counted * alive[:, None, None]
    whole = signal(jnp.broadcast_to(scores[..., None], (B, K, T)))
    np.testing.assert_allclose(jnp.sum(whole * counted), 0, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(whole**2 * counted) / counted.sum(), 1, rtol=1e-4)
    found = signal(scores)
    found = jnp.broadcast_to(found[..., None], whole.shape) if mask is None else found
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
    assert not np.any(signal(jnp.full((B, K), 0.1)))


@EACH
def test_pairs_without_scores_do_for_those_that_learn_from_comparisons(cls):
    def value():
        signal = cls().signal(Verdict(None, PAIRS, None, MASK, OTHERS), KEY, ADAPTIVE)
        return core.evaluate(cls().objective(ALL, signal, ADAPTIVE))[0]

    assert works(value, TypeError, ValueError, AttributeError) == cls.comparisons
    assert not cls.comparisons or np.isfinite(value())


@EACH
def test_what_learns_offline_learns_from_comparisons_and_makes_labels(cls):
    assert (cls.online or cls.offline) and (not cls.offline or cls.comparisons)
    made = cls().signal(verdict_of(cls), KEY, ADAPTIVE)
    assert isinstance(made, Labels if cls.comparisons else Advantages)


@EACH
@pytest.mark.parametrize("alive", [None, ALIVE], ids=["alive", "one dead"])
def test_the_leaves_of_a_signal_begin_with_the_groups(cls, alive):
    """So that it can be cut into minibatches."""
    for scheme in TAKEN["scheme"] if cls().has("scheme") else (None,):
        method = cls() if scheme is None else cls(scheme=scheme)
        leaves = jax.tree.leaves(method.signal(verdict_of(cls, alive), KEY, ADAPTIVE))
        assert leaves and all(leaf.shape[0] == B for leaf in leaves)
    if cls.online:
        leaves = jax.tree.leaves(cls().signal(Verdict(SCORES), KEY, ADAPTIVE))  # as control has it
        assert leaves and all(leaf.shape[0] == B for leaf in leaves)


@EACH
def test_terms_of_a_signal_that_was_cut_add_up(cls):
    signal = cls().signal(verdict_of(cls), KEY, ADAPTIVE)
    whole = cls().objective(ALL, signal, ADAPTIVE)
    rows = (slice(0, 3), slice(3, B))
    parts = [cls().objective(*jax.tree.map(lambda x, r=r: x[r], (ALL, signal)), ADAPTIVE) for r in rows]
    for name, term in whole.items():
        np.testing.assert_allclose(sum(part[name].total for part in parts), term.total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sum(part[name].count for part in parts), term.count)


@pytest.mark.parametrize("dead", [False, True], ids=["padding", "padding and a group"])
@EACH
def test_what_is_left_out_is_not_read(cls, dead):
    """Whatever a model says of padding and of a group that is not alive: every loss and option of the trust region."""
    read = MASK * ALIVE[:, None, None] if dead else MASK
    changed = {name: jnp.where(read > 0, getattr(ALL, name), -jnp.inf) for name in ("logp", "old_logp", "ref_logp")}

    def run(method, likelihoods):
        signal = method.signal(verdict_of(cls, ALIVE if dead else None), KEY, ADAPTIVE)

        def value(logp):
            terms = method.objective(likelihoods._replace(logp=logp), signal, ADAPTIVE)
            return core.evaluate({name: term for name, term in terms.items() if not (dead and name == "approx_kl")})

        return jax.value_and_grad(value, has_aux=True)(likelihoods.logp)

    for method in [cls(), cls(hinge="tokens"), cls(trust_region="lagrangian")] if cls().has("hinge") else [cls()]:
        jax.tree.map(np.testing.assert_array_equal, run(method, ALL._replace(**changed)), run(method, ALL))


@pytest.mark.parametrize("cls", [Grpo, RankGrpo], ids=lambda cls: cls.name)
def test_advantages_of_groups_that_are_not_alive_are_zero_whatever_their_scores(cls):
    verdict = Verdict(jnp.array([[1.0, 2.0], [jnp.nan, 1.0]]), alive=jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(cls().signal(verdict, KEY, ADAPTIVE).advantages[1], 0)


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls.online], ids=lambda cls: cls.name)
def test_dead_groups_take_no_part(cls):
    gradient = np.asarray(jax.grad(functools.partial(value_of, cls(), alive=ALIVE))(LOGP))
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=(1, 2)) > 0)[np.asarray(ALIVE) > 0].all()


@EACH
def test_the_improved_term_is_the_surrogate(cls):
    signal = cls().signal(verdict_of(cls), KEY, ADAPTIVE)
    terms = cls().objective(ALL, signal, ADAPTIVE)
    assert terms["surrogate"].weight == 1 and not {"policy", "fit", cls.name} & set(terms)
    assert all(jnp.ndim(term.total) == 0 for term in terms.values())


@EACH
def test_batches_are_counted_and_the_multiplier_is_hards(cls):
    after = cls().renewed(ADAPTIVE, jnp.float32(0.5))
    assert after.batches == 4 and after.multiplier == 1.5
    assert cls().report(ADAPTIVE).keys() == ({"delta"} if cls is HardPair else set())


def test_hards_multiplier_follows_the_kl_and_delta_the_batches():
    dual = HardPair(trust_region="lagrangian", beta=0.1, delta_0=0.1, delta_gamma=0.5)
    for kl in (0.02, 0.5):
        expected = core.update_multiplier(ADAPTIVE.multiplier, jnp.float32(kl), 0.1)
        found = dual.renewed(ADAPTIVE, jnp.float32(kl))
        assert found.batches == 4 and found.multiplier == expected != 1.5
        assert (expected > 1.5) == (kl > 0.1)
    assert dual.renewed(ADAPTIVE) == Adaptive(4, 1.5)  # no update was made
    np.testing.assert_allclose(dual.report(ADAPTIVE)["delta"], 0.1 * 0.5**3, rtol=1e-6)


@pytest.mark.parametrize("cls", [HardPair, SoftPair])
def test_an_odd_group_cannot_be_matched(cls):
    cls(scheme="matched").check_group(4)
    cls().check_group(3)
    with pytest.raises(ValueError, match="candidates=3 must be even"):
        cls(scheme="matched").check_group(3)


# Each objective is the loss of core that it names.


def same(method, loss, alive=None, renamed=()):
    """Value, gradient and metrics of a method's objective are those of `loss(logp) -> (loss, metrics)`."""
    signal = method.signal(verdict_of(type(method), alive), KEY, ADAPTIVE)

    def ours(logp):
        return core.evaluate(method.objective(ALL._replace(logp=logp), signal, ADAPTIVE))

    (found, more), gradient = jax.value_and_grad(ours, has_aux=True)(LOGP)
    (expected, others), other_gradient = jax.value_and_grad(loss, has_aux=True)(LOGP)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, other_gradient, rtol=1e-4, atol=1e-7)
    assert np.abs(gradient).max() > 1e-4
    others = {dict(renamed).get(name, name): x for name, x in others.items()}
    assert set(others) == set(more)
    for name, x in others.items():
        np.testing.assert_allclose(more[name], x, rtol=1e-5, atol=1e-6, err_msg=name)


POLICY = (("policy", "surrogate"), ("kl", "kl_penalty"))
RULES = list(itertools.product(("token", "sequence"), ("sequence_mean", "token_mean", "constant")))
COUNTED = jnp.broadcast_to(ALIVE[:, None], (B, K))


@pytest.mark.parametrize(("level", "aggregate"), RULES)
def test_grpo_and_rank_grpo_are_grpo_loss_on_their_advantages(level, aggregate):
    def loss(advantages, clip, **options):
        rules = {"level": level, "aggregate": aggregate}
        return lambda logp: core.grpo_loss(logp, OLD, advantages, mask=MASK, clip=clip, **rules, **options)

    grpo = Grpo(clip=0.1, clip_high=0.3, level=level, aggregate=aggregate)
    rank = RankGrpo(clip=0.05, dual_clip=1.1, level=level, aggregate=aggregate)
    standard, ranks = core.group_advantages(SCORES), core.rank_advantages(SCORES)
    same(grpo, loss(standard, (0.1, 0.3)), None, POLICY)
    same(rank, loss(ranks, 0.05, dual_clip=1.1), None, POLICY)
    same(grpo, loss(standard, (0.1, 0.3), candidate_weight=COUNTED), ALIVE, POLICY)
    same(rank, loss(ranks, 0.05, dual_clip=1.1, candidate_weight=COUNTED), ALIVE, POLICY)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_grpo_standardises_as_it_says(baseline, scale):
    method = Grpo(baseline=baseline, scale=scale)
    advantages = core.group_advantages(SCORES, baseline=baseline, scale=scale)
    np.testing.assert_allclose(method.signal(Verdict(SCORES), KEY, ADAPTIVE).advantages, advantages, rtol=1e-6)
    found = method.signal(Verdict(SCORES, alive=ALIVE), KEY, ADAPTIVE).advantages
    kept = np.flatnonzero(ALIVE)
    expected = core.group_advantages(SCORES[kept], baseline=baseline, scale=scale)
    np.testing.assert_allclose(found[kept], expected, rtol=1e-4)  # eps
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("alive", [None, ALIVE], ids=["alive", "one dead"])
def test_ppo_is_ppo_loss_without_the_critic(alive):
    """On advantages of mean 0 and std 1 over the steps that count."""
    counted = np.asarray(MASK if alive is None else MASK * ALIVE[:, None, None], bool)
    steps = np.asarray(STEPS * MASK, np.float64)
    advantages = jnp.asarray((steps - steps[counted].mean()) / steps[counted].std(), jnp.float32)
    mask, none = jnp.asarray(counted, jnp.float32), jnp.zeros((B, K, T))

    def loss(logp):
        value, metrics = core.ppo_loss(
            logp, OLD, advantages, none, none, none, mask=mask, clip=(0.1, 0.3), dual_clip=1.2
        )
        everywhere = core.ppo_loss(logp, OLD, *[none] * 4, mask=MASK)[1]["approx_kl"]  # dead groups too
        return value, {name: x for name, x in metrics.items() if name != "value"} | {"approx_kl": everywhere}

    same(Ppo(clip=0.1, clip_high=0.3, dual_clip=1.2), loss, alive, POLICY)


def test_ppo_loss_is_what_trainers_make_of_ppo_and_a_critic():
    values, returns, how = STEPS + 0.1, STEPS**2, {"mask": MASK, "value_weight": 0.3}
    signal = Advantages(STEPS)

    def trained(logp, values):
        terms = Ppo(clip=0.1, dual_clip=1.5).objective(Likelihoods(logp, OLD, mask=MASK), signal, ADAPTIVE)
        return core.evaluate(terms | core.value_terms(values, OLD, returns, **how))

    def loss(logp, values):
        value, metrics = core.ppo_loss(logp, OLD, STEPS, values, OLD, returns, clip=0.1, dual_clip=1.5, **how)
        return value, {"surrogate": metrics.pop("policy")} | metrics

    found, expected = (jax.value_and_grad(f, (0, 1), has_aux=True)(LOGP, values) for f in (trained, loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)


@pytest.mark.parametrize(("level", "aggregate"), RULES)
@pytest.mark.parametrize("alive", [None, ALIVE], ids=["alive", "one dead"])
def test_soft_is_soft_pair_grpo_loss(level, aggregate, alive):
    pairs = core.pairs_from_rewards(SCORES, scheme="matched", margin=0.2)
    if alive is not None:
        pairs = pairs._replace(weight=pairs.weight * alive[:, None])
    rules = {"beta": 0.4, "dual_clip": 1.1, "level": level, "aggregate": aggregate}

    def loss(logp):
        kl = core.kl_k2(logp, OLD)
        return core.soft_pair_grpo_loss(logp, OLD, pairs, mask=MASK, clip=(0.1, 0.3), kl=kl, **rules)

    same(SoftPair(scheme="matched", margin=0.2, clip=0.1, clip_high=0.3, **rules), loss, alive, POLICY)


@pytest.mark.parametrize("cls", [Grpo, RankGrpo, SoftPair], ids=lambda cls: cls.name)
def test_cispo_is_its_loss_of_core_with_the_cap_of_clip_high(cls):
    def loss(logp):
        cispo = {"mask": MASK, "policy_loss": "cispo", "clip": 0.3}
        if cls is SoftPair:
            pairs = core.pairs_from_rewards(SCORES, scheme=cls().scheme)
            return core.soft_pair_grpo_loss(logp, OLD, pairs, kl=core.kl_k2(logp, OLD), beta=cls().beta, **cispo)
        advantages = {Grpo: core.group_advantages, RankGrpo: core.rank_advantages}[cls](SCORES)
        return core.grpo_loss(logp, OLD, advantages, **cispo)

    for clips in ({"clip_high": 0.3}, {"clip": 0.3}):
        same(cls(policy_loss="cispo", **clips), loss, None, POLICY)


CISPO = [({"dual_clip": 3.0}, "dual_clip=3.0"), ({"clip": 0.1, "clip_high": 0.3}, "clip=0.1")]


@pytest.mark.parametrize("cls", [Grpo, RankGrpo, SoftPair], ids=lambda cls: cls.name)
@pytest.mark.parametrize(("changes", "named"), CISPO, ids=["dual_clip", "clip"])
def test_settings_without_effect_in_cispo_are_refused(cls, changes, named):
    assert cls(**changes) != cls()
    with pytest.raises(ValueError, match=rf'^{named} has no effect with policy_loss="cispo"'):
        cls(**changes).replace(policy_loss="cispo")


REGIONS = {"candidates": {"alpha": 0.7}, "tokens": {"hinge": "tokens", "alpha": 0.7, "aggregate": "token_mean"}}
REGIONS["multiplier"] = {"trust_region": "lagrangian", "aggregate": "token_mean"}
HARD = list(itertools.product(("reverse", "forward"), REGIONS, (False, True)))


@pytest.mark.parametrize(("fit", "region", "switch"), HARD)
def test_hard_is_hard_pair_grpo_loss_with_the_target_that_it_would_make(fit, region, switch):
    own = {"fit": fit, "project_target": switch, "length_normalize": switch, "beta": 0.002} | REGIONS[region]
    hinge = {"hinge": own.pop("hinge", "candidates")}
    pairs = core.pairs_from_rewards(SCORES, scheme="best_worst")

    def loss(logp):
        kl = None if region == "candidates" else core.kl_k2(logp, OLD)
        delta, multiplier = 0.2 * 0.5**3, ADAPTIVE.multiplier
        return core.hard_pair_grpo_loss(logp, OLD, pairs, delta, mask=MASK, kl=kl, multiplier=multiplier, **own)

    method = HardPair(scheme="best_worst", delta_0=0.2, delta_gamma=0.5, **hinge, **own)
    same(method, loss, None, (("fit", "surrogate"),))


def test_a_given_kl_is_taken_in_place_of_the_estimate():
    exact = jnp.abs(STEPS)
    for method, name in ((SoftPair(beta=1.0), "kl_penalty"), (HardPair(hinge="tokens"), "kl")):
        terms = method.objective(ALL._replace(kl=exact), method.signal(Verdict(SCORES), KEY, ADAPTIVE), ADAPTIVE)
        np.testing.assert_allclose(terms[name].mean, np.mean((exact * MASK).sum(-1) / LENGTHS), rtol=1e-5)


def totals(logp, mean):
    """Of the chosen and the rejected sequence."""
    total = jnp.sum(logp * MASK, axis=-1)
    total = total / LENGTHS if mean else total
    return total[:, 0], total[:, 1]


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_dpo_and_ipo_are_their_losses(mean):
    def dpo(logp):
        return core.dpo_loss(*totals(logp, mean), *totals(REF, mean), beta=0.4, label_smoothing=0.1)

    def ipo(logp):
        return core.ipo_loss(*totals(logp, mean), *totals(REF, mean), beta=0.4)

    same(Dpo(length_normalize=mean, beta=0.4, label_smoothing=0.1), dpo, None, (("dpo", "surrogate"),))
    same(Ipo(length_normalize=mean, beta=0.4), ipo, None, (("ipo", "surrogate"),))


def test_orpo_and_simpo_are_their_losses():
    same(Orpo(weight=0.3), lambda x: core.orpo_loss(*totals(x, True), weight=0.3), None, (("nll", "surrogate"),))
    loss = functools.partial(core.simpo_loss, beta=2.5, gamma=0.8)
    same(SimPo(beta=2.5, gamma=0.8), lambda x: loss(*totals(x, True)), None, (("simpo", "surrogate"),))


@EACH
def test_a_group_that_is_not_there_counts_nothing(cls):
    """Zeros after the groups of a batch, as a mesh that these do not divide has them: every figure stays."""

    def fill(x):
        return None if x is None else jnp.concatenate([x, jnp.zeros((2, *x.shape[1:]), x.dtype)])

    method = cls(
        **({"scale": "batch"} if cls is Grpo else {"scheme": "bradley_terry"} if cls.online and cls.comparisons else {})
    )
    alive = ALIVE if cls.online else jnp.ones(B)
    verdict = verdict_of(cls, alive)

    def loss(x, likelihoods, verdict):
        signal = method.signal(verdict, KEY, ADAPTIVE)
        return core.evaluate(method.objective(likelihoods._replace(logp=x), signal, ADAPTIVE))

    both = []
    for inputs in ((ALL, verdict), jax.tree.map(fill, (ALL, verdict))):
        both.append(jax.value_and_grad(loss, has_aux=True)(inputs[0].logp, *inputs))
    ((value, metrics), gradient), (found, more) = both[0], both[1]
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(more, fill(gradient), rtol=1e-5, atol=1e-9)
    for name in metrics.keys() - {"groups_without_pair", "invalid_pairs"}:  # these count all groups
        np.testing.assert_allclose(found[1][name], metrics[name], rtol=1e-6, atol=1e-7, err_msg=name)


# KTO, from its paper.


@pytest.mark.parametrize(("gap", "weights"), [(0.2, (1.0, 1.0)), (0.2, (1.33, 0.5)), (-0.2, (1.0, 2.0))])
def test_kto_is_equation_8(gap, weights):
    """In float64, reply by reply: lambda_y - v, with the reference point of the batch's mismatched replies."""
    ours, ref = (np.asarray(x * MASK, np.float64).sum(-1)[:, :2] for x in (LOGP, REF))
    z = max(np.mean(np.asarray((REF + gap - REF) * MASK, np.float64).sum(-1)), 0)
    assert (z > 0) == (gap > 0)
    value, slope = 0.0, np.zeros((B, K, T))
    for b, k in np.ndindex(B, 2):
        sign, weight = (1, weights[0]) if k == 0 else (-1, weights[1])
        v = weight / (1 + np.exp(-sign * 0.4 * (ours[b, k] - ref[b, k] - z)))
        value += (weight - v) / (2 * B)
        slope[b, k] = -sign * 0.4 * v * (1 - v / weight) / (2 * B) * np.asarray(MASK)[b, k]
    method = Kto(beta=0.4, desirable_weight=weights[0], undesirable_weight=weights[1])
    signal = method.signal(Verdict(None, PAIRS, None, MASK, ALL._replace(logp=REF + gap)), KEY, ADAPTIVE)

    def loss(logp):
        return core.evaluate(method.objective(ALL._replace(logp=logp), signal, ADAPTIVE))

    (found, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(LOGP)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(metrics["reference_point"], z, rtol=1e-5)
    assert metrics["accuracy"] == np.mean((ours - ref)[:, 0] > (ours - ref)[:, 1])


def test_kto_needs_replies_to_other_prompts():
    with pytest.raises(ValueError, match="mismatched: kto needs"):
        Kto().signal(Verdict(None, PAIRS), KEY, ADAPTIVE)
    with pytest.raises(ValueError, match="prompts=1: kto learns from replies to other prompts"):
        AlignConfig(Kto(), None).replace(prompts=1)


# SimPO, from its paper.


def simpo_in_float64(logp, beta, gamma):
    """Eq. 6 with the logistic function as it stands; its gradient by central differences, which know no formula."""

    def value(x):
        means = [[x[b, k, : LENGTHS[b, k]].mean() for k in (0, 1)] for b in range(B)]
        return np.mean([-np.log(1 / (1 + np.exp(-(beta * won - beta * lost - gamma)))) for won, lost in means])

    gradient = np.zeros_like(logp)
    for index in np.ndindex(*logp.shape):
        step = np.zeros_like(logp)
        step[index] = 1e-5
        gradient[index] = (value(logp + step) - value(logp - step)) / 2e-5
    return value(logp), gradient


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.0), (10.0, 4.0), (0.3, 0.1)])
def test_simpo_is_equation_6(beta, gamma):
    logp = np.asarray(LOGP, np.float64)
    expected, slope = simpo_in_float64(logp, beta, gamma)
    method = SimPo(beta=beta, gamma=gamma)

    def loss(x):
        return core.evaluate(method.objective(Likelihoods(x, mask=MASK), Labels(PAIRS), ADAPTIVE))

    (found, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(LOGP)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[:, 2:], 0)
    np.testing.assert_array_equal(np.asarray(gradient)[np.asarray(MASK) == 0], 0)
    means = (logp * np.asarray(MASK)).sum(-1) / LENGTHS
    right = np.mean(means[:, 0] > means[:, 1])
    assert 0 < right < 1
    np.testing.assert_allclose(metrics["accuracy"], right)  # whatever the target margin is
    np.testing.assert_allclose(metrics["chosen_reward"], beta * means[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rejected_reward"], beta * means[:, 1].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["surrogate"], found)
    assert set(metrics) == {"surrogate", "accuracy", "chosen_reward", "rejected_reward"}


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls.offline], ids=lambda cls: cls.name)
def test_the_implicit_reward_is_what_the_loss_ranks_by(cls):
    """The chosen reply is likelier in sum and less likely per token, so that sums and means disagree."""
    logp = jnp.asarray([[[-1.0, 0.0, 0.0, 0.0], [-0.6, -0.3, -0.4, -0.2]]])
    mask = jnp.asarray([[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    likelihoods = Likelihoods(logp, logp, jnp.zeros_like(logp), mask)
    sums, means = np.array([[-1.0, -1.5]]), np.array([[-1.0, -0.375]])
    expected = {"orpo": np.log(np.exp(means) / (1 - np.exp(means))), "simpo": means}.get(cls.name, sums)
    np.testing.assert_allclose(cls().implicit_reward(likelihoods), expected, rtol=1e-6)
    if "length_normalize" in {field.name for field in dataclasses.fields(cls)}:
        np.testing.assert_allclose(cls(length_normalize=True).implicit_reward(likelihoods), means, rtol=1e-6)
    if not cls.ratio:
        verdict = Verdict(pairs=core.chosen_rejected_pairs(1), mismatched=likelihoods)
        signal = cls().signal(verdict, jax.random.key(0), ADAPTIVE)
        metrics = core.evaluate(cls().objective(likelihoods, signal, ADAPTIVE))[1]
        assert metrics["accuracy"] == (expected[0, 0] > expected[0, 1])


def test_simpo_loss_stays_finite_and_names_what_is_wrong():
    far = jnp.array([-500.0, 500.0])
    value, slope = jax.value_and_grad(lambda x: core.simpo_loss(x, -x, beta=2.0, gamma=1.0)[0])(far)
    np.testing.assert_allclose(value, (2000 + 1) / 2, rtol=1e-6)  # linear where a pair is far on the wrong side
    np.testing.assert_allclose(slope, [-2.0, 0.0])
    assert core.simpo_loss(jnp.zeros(3), jnp.zeros(3))[1]["accuracy"] == 0.5  # a tie is half right
    for fields, message in (({"beta": 0.0}, "beta must be > 0"), ({"gamma": -1.0}, "gamma must be >= 0")):
        with pytest.raises(ValueError, match=message):
            core.simpo_loss(far, far, **fields)
    with pytest.raises(ValueError, match="same shape"):
        core.simpo_loss(far, jnp.zeros(3))
    with pytest.raises(ValueError, match="chosen_logp must be"):
        core.simpo_loss(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
