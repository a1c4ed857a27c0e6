"""Statement 11: which methods raise the exact return J at every update, and a step that provably does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pairgrpo_jax.core import (
    Objective,
    evaluate,
    group_advantages,
    grpo_loss,
    hard_pair_grpo_loss,
    kl_k2,
    limit_step,
    pairs_from_rewards,
    ppo_loss,
    soft_pair_grpo_loss,
    update_multiplier,
)
from pairgrpo_jax.theory import mdp as tabular
from pairgrpo_jax.theory.certificates import policy_improvement_bound
from pairgrpo_jax.theory.mdp import MDP, Solution
from pairgrpo_jax.theory.problems import enumerate_groups, mixture
from pairgrpo_jax.theory.statement import FAILS, HOLDS, Statement, require_float64

GROUP, DELTA, RADIUS = 4, 0.1, 0.01
STEP_SIZES = (0.01, 0.1, 0.5)
ACCEPT = ("all", "limit", "certified")
PROBLEMS, STATES, FEATURES = 16, 8, 2


class Batch(NamedTuple):
    """An infinite batch of the old policy: its `solution`, and `old_logp [S,A]`."""

    solution: Solution
    old_logp: jax.Array

    @property
    def state_probs(self) -> jax.Array:
        """`[S]`, normalised visitation."""
        return self.solution.visitation / jnp.sum(self.solution.visitation)


def _all_groups(objective: Callable[..., Objective], logp: jax.Array, batch: Batch) -> Objective:
    """Terms of `objective(logp, old_logp, rewards)` over all groups of K actions in all states; rewards are Q."""
    index, orders = enumerate_groups(logp.shape[1], GROUP)
    old = batch.old_logp[:, index]
    probs = batch.state_probs[:, None] * jnp.asarray(orders) * jnp.exp(jnp.sum(old, axis=-1))
    rows = (x.reshape(-1, GROUP) for x in (logp[:, index], old, batch.solution.q[:, index]))
    return mixture(objective, probs.reshape(-1), *rows)


def ppo(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """PPO's clipped objective with exact advantages, normalised over the batch."""
    del multiplier
    probs = batch.state_probs[:, None] * jnp.exp(batch.old_logp)
    advantages = batch.solution.advantage
    advantages = advantages / jnp.sqrt(jnp.sum(probs * jnp.square(advantages)))

    def objective(logp, old_logp, advantages):
        zero = jnp.zeros_like(logp)
        return ppo_loss.objective(logp, old_logp, advantages, zero, zero, zero)

    return mixture(objective, probs.reshape(-1), *(x.reshape(-1, 1) for x in (logp, batch.old_logp, advantages)))


def grpo(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """GRPO, clip 0.2."""
    del multiplier
    return _all_groups(lambda x, old, r: grpo_loss.objective(x, old, group_advantages(r)), logp, batch)


def soft(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """Soft-Pair-GRPO, matched pairs, clip 0.2, beta 0.01."""
    del multiplier

    def objective(x, old, rewards):
        return soft_pair_grpo_loss.objective(x, old, pairs_from_rewards(rewards), kl=kl_k2(x, old), beta=0.01)

    return _all_groups(objective, logp, batch)


def _hard(logp: jax.Array, batch: Batch, **options) -> Objective:
    """Hard-Pair-GRPO on all actions of each state, best against worst."""

    def objective(x, old, rewards):
        pairs = pairs_from_rewards(rewards, scheme="best_worst")
        return hard_pair_grpo_loss.objective(x, old, pairs, DELTA, beta=RADIUS, candidates="likelihood", **options)

    return mixture(objective, batch.state_probs, logp, batch.old_logp, batch.solution.q)


def hard(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """Hard-Pair-GRPO without a trust region."""
    del multiplier
    return _hard(logp, batch, alpha=0.0)


def hard_hinge(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """Hard-Pair-GRPO with the paper's hinge, alpha 0.5."""
    del multiplier
    return _hard(logp, batch)


def hard_lagrangian(logp: jax.Array, batch: Batch, multiplier: jax.Array) -> Objective:
    """Hard-Pair-GRPO with a learned multiplier."""
    return _hard(logp, batch, trust_region="lagrangian", multiplier=multiplier)


METHODS = {
    "PPO": ppo,
    "GRPO": grpo,
    "Soft": soft,
    "Hard": hard,
    "Hard, hinge": hard_hinge,
    "Hard, Lagrangian": hard_lagrangian,
}


class Log(NamedTuple):
    """Per update: true `gain` in J, TRPO's `bound` of it, mean `kl`, and the `value` J after."""

    gain: jax.Array
    bound: jax.Array
    kl: jax.Array
    value: jax.Array


def improve(
    mdp: MDP,
    method: Callable[[jax.Array, Batch, jax.Array], Objective],
    step_size: jax.typing.ArrayLike,
    *,
    updates: int = 30,
    inner: int = 5,
    accept: jax.typing.ArrayLike = 0,
) -> Log:
    """Runs a method with exact batches: `inner` Adam steps per update.

    Args:
      mdp: the problem.
      method: maps `logp [S,A]`, the batch and the multiplier to terms.
      step_size: of Adam.
      updates: N, how often the policy is frozen and its batch recomputed.
      inner: Adam steps per update.
      accept: index into `ACCEPT`. "all" steps; "limit" cuts a step to mean KL <= RADIUS; "certified" takes the longest
        of 24 halvings whose improvement is certain by TRPO's bound, and stays if none is.

    Returns:
      `Log` of `[N]` arrays.
    """
    optimizer = optax.adam(step_size)  # type: ignore

    def update(carry, _):
        theta, state, multiplier = carry
        old_logp = tabular.log_policy(mdp, theta)
        batch = Batch(tabular.solve(mdp, jnp.exp(old_logp)), old_logp)

        def mean_kl(x):
            return batch.state_probs @ tabular.state_kl(tabular.log_policy(mdp, x), old_logp)

        def step(_, inside):
            x, state = inside
            grads = jax.grad(lambda x: evaluate(method(tabular.log_policy(mdp, x), batch, multiplier))[0])(x)
            changes, state = optimizer.update(grads, state, x)
            return optax.apply_updates(x, changes), state

        new, state = jax.lax.fori_loop(0, inner, step, (theta, state))
        limited, certified = limit_step(mean_kl, theta, new, RADIUS), _certified(mdp, batch, theta, new)
        new = jnp.select([accept == 0, accept == 1], [new, limited], certified)
        after = tabular.solve(mdp, jnp.exp(tabular.log_policy(mdp, new))).value
        bound, kl = lower_bound(mdp, batch, new), mean_kl(new)
        multiplier = update_multiplier(multiplier, kl, RADIUS)
        return (new, state, multiplier), Log(after - batch.solution.value, bound, kl, after)

    theta = jnp.zeros(mdp.features.shape[-1])
    _, log = jax.lax.scan(update, (theta, optimizer.init(theta), jnp.ones(())), length=updates)
    return log


def lower_bound(mdp: MDP, batch: Batch, theta: jax.Array) -> jax.Array:
    """TRPO's lower bound of the gain in J at `theta`."""
    policy = jnp.exp(tabular.log_policy(mdp, theta))
    return policy_improvement_bound(
        tabular.surrogate_gain(batch.solution, policy),
        tabular.largest_total_variation(policy, jnp.exp(batch.old_logp)),
        jnp.max(jnp.abs(batch.solution.advantage)),
        mdp.discount,  # type: ignore
    )


def _certified(mdp: MDP, batch: Batch, old: jax.Array, new: jax.Array) -> jax.Array:
    """The longest of 24 halvings of the step whose lower bound is positive, or no step."""
    fractions = 0.5 ** jnp.arange(24)
    sure = jax.vmap(lambda f: lower_bound(mdp, batch, old + f * (new - old)) > 0)(fractions)
    return old + jnp.where(jnp.any(sure), fractions[jnp.argmax(sure)], 0) * (new - old)


def run_all(key: jax.Array) -> dict[str, dict[str, Log]]:
    """Logs `[step sizes, problems, N]` by rule of `ACCEPT` and method, on MDPs with fewer parameters than states."""
    return _run_all(tuple(np.asarray(jax.random.key_data(key)).tolist()))


@functools.cache
def _run_all(key_data: tuple[int, ...]) -> dict[str, dict[str, Log]]:
    keys = jax.random.split(jax.random.wrap_key_data(jnp.asarray(key_data, jnp.uint32)), PROBLEMS)
    mdps = jax.vmap(lambda key: tabular.random_mdp(key, states=STATES, features=FEATURES))(keys)
    mdps = mdps._replace(discount=jnp.full(PROBLEMS, mdps.discount))

    sizes, rules = jnp.asarray(STEP_SIZES), jnp.arange(len(ACCEPT))
    logs = {name: _compiled(name)(mdps, sizes, rules) for name in METHODS}
    return {rule: {n: Log(*(x[i] for x in log)) for n, log in logs.items()} for i, rule in enumerate(ACCEPT)}


@functools.cache
def _compiled(name: str) -> Callable[[MDP, jax.Array, jax.Array], Log]:
    """`improve` by a method, over rules, step sizes and problems; compiled once for all keys."""
    one = jax.vmap(lambda m, s, a: improve(m, METHODS[name], s, accept=a), in_axes=(0, None, None))
    return jax.jit(jax.vmap(jax.vmap(one, in_axes=(None, 0, None)), in_axes=(None, None, 0)))


def improved(log: Log) -> np.ndarray:
    """Share of updates that do not lower J, by step size."""
    return np.asarray(jnp.mean(log.gain >= -1e-12, axis=(1, 2)))


def monotonic_improvement(key: jax.Array) -> Statement:
    """11. No method's updates all raise J, whatever its clip, hinge or multiplier; TRPO's bound holds for all.

    A counterexample needs no seed: the problems are always the same, for among others PPO might lower J nowhere.
    """
    require_float64()
    del key
    logs = run_all(jax.random.key(0))["all"]
    shares = {name: improved(log) for name, log in logs.items()}
    return Statement(
        item="11",
        claim="each update improves J (PPO, GRPO, Soft, Hard with hinge or Lagrangian)",
        verdict=FAILS,
        condition="16 MDPs of 8 states and 2 parameters, drawn once for all seeds, exact batches; measured: the best "
        "method's worst share",
        measured=max(float(share.min()) for share in shares.values()),
        predicted=0.0,
        bound=0.999,
        checks={
            f"{name} lowers J somewhere by more than 1e-6": bool(jnp.min(log.gain) < -1e-6)
            for name, log in logs.items()
        },
        numbers={
            f"{name}, step size {size}: {what}": float(value)
            for name, log in logs.items()
            for i, size in enumerate(STEP_SIZES)
            for what, value in (
                ("share improved", shares[name][i]),
                ("mean KL", jnp.mean(log.kl[i])),
                ("mean J at the end", jnp.mean(log.value[i, :, -1])),
                ("largest drop", -jnp.min(log.gain[i])),
            )
        },
        curves={name: share for name, share in shares.items()} | {"step size": np.array(STEP_SIZES)},
    )


def trust_region_bound(key: jax.Array) -> Statement:
    """11b. TRPO's lower bound holds for every update of every method; it is positive for few."""
    require_float64()
    logs = run_all(key)["all"]
    gain, bound = (jnp.stack([getattr(log, f) for log in logs.values()]) for f in ("gain", "bound"))
    return Statement(
        item="11b",
        claim="gain in J >= surrogate gain - 4 gamma eps max TV^2 / (1-gamma)^2 (TRPO)",
        verdict=HOLDS,
        condition="for any two policies; it certifies improvement only where it is positive",
        measured=float(jnp.maximum(jnp.max(bound - gain), 0)),
        predicted=0.0,
        bound=1e-9,
        checks={"some updates that improve are not certified": bool(jnp.any((gain > 0) & (bound < 0)))},
        numbers={"share of updates that improve": float(jnp.mean(gain > 0))}
        | {
            f"share of updates it certifies, step size {size}": float(jnp.mean(bound[:, i] > 0))
            for i, size in enumerate(STEP_SIZES)
        },
        curves={"gain": np.asarray(gain).ravel(), "bound": np.asarray(bound).ravel()},
    )


def certified_step(key: jax.Array) -> Statement:
    """I3. A step cut until TRPO's bound is positive never lowers J; one cut to a KL radius only keeps the radius."""
    require_float64()
    logs = run_all(key)
    worst = min(float(jnp.min(log.gain)) for log in logs["certified"].values())
    largest = max(float(jnp.max(log.kl)) for log in logs["limit"].values())
    drop = {rule: max(float(-jnp.min(log.gain)) for log in logs[rule].values()) for rule in ACCEPT}
    return Statement(
        item="I3",
        claim="a step cut until TRPO's bound is positive never lowers J, for every method",
        verdict=HOLDS,
        condition="needs exact advantages and the max TV; its steps are tiny. limit_step keeps the KL only",
        measured=max(0.0, -worst),
        predicted=0.0,
        bound=1e-12,
        checks={
            "some step is taken": bool(jnp.any(logs["certified"]["GRPO"].kl > 0)),
            "limit_step: mean KL <= 0.01 at every update of every method": largest <= RADIUS,
        },
        numbers={f"largest drop of J, {rule}": value for rule, value in drop.items()}
        | {
            f"{name}, {rule}, step size {STEP_SIZES[-1]}: {what}": float(value)
            for rule in ACCEPT
            for name, log in logs[rule].items()
            for what, value in (
                ("share improved", improved(log)[-1]),
                ("mean J at the end", jnp.mean(log.value[-1, :, -1])),
            )
        },
        curves={rule: np.stack([improved(log) for log in logs[rule].values()]) for rule in ACCEPT},
    )
