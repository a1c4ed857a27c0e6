"""Preference pairs: who is preferred to whom inside a group, and the binary rewards that follow."""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from pairgrpo_jax.core.advantages import as_groups
from pairgrpo_jax.core.checks import concrete, require_choice, require_nonnegative
from pairgrpo_jax.core.terms import as_float, divisor

Scheme = Literal["best_worst", "matched", "all", "bradley_terry", "margin_weighted"]
PAIR_SCHEMES = get_args(Scheme)


class Pairs(NamedTuple):
    """P preference pairs in each of B groups.

    Attributes:
      preferred: int32 `[B,P]`, index of the preferred candidate in its group, in [0, K).
      rejected: int32 `[B,P]`, index of the rejected one, another.
      weight: float `[B,P]`, the pair's weight, finite and >= 0; 0 for a tie or an unused slot, of any indices.
    """

    preferred: jax.Array
    rejected: jax.Array
    weight: jax.Array


def usable_pairs(pairs: Pairs, groups: int, group_size: int) -> tuple[Pairs, jax.Array]:
    """The pairs without those that make no sense, which get weight 0, and where those are, boolean `[B,P]`.

    Raises:
      ValueError: unless they are `Pairs`, K >= 2, the fields are `[B,P]` with B = `groups` and the indices integers;
        for a pair that makes no sense where all fields are concrete.
    """
    if group_size < 2:
        raise ValueError(f"pairs need K >= 2 candidates in a group, got K = {group_size}")
    if not isinstance(pairs, Pairs):
        got = "an array" if hasattr(pairs, "shape") else type(pairs).__name__
        raise ValueError(f"pairs must be Pairs, got {got}; pairs_from_rewards makes them of rewards")
    for name, x in pairs._asdict().items():
        if not hasattr(x, "dtype"):
            raise ValueError(f"pairs.{name} must be an array, got {type(x).__name__}")
    for name in ("preferred", "rejected"):
        if not jnp.issubdtype(getattr(pairs, name).dtype, jnp.integer):
            raise ValueError(f"pairs.{name} must hold integer indices, got {getattr(pairs, name).dtype}")
    if {*map(jnp.shape, pairs)} != {(groups, *pairs.preferred.shape[-1:])}:
        told = ", ".join(str(jnp.shape(x)) for x in pairs)
        raise ValueError(f"pairs must hold preferred, rejected and weight [B,P] with B = {groups}, got shapes {told}")
    known = [x for x in map(concrete, pairs) if x is not None]
    if len(known) == 3 and np.any(bad := _makes_no_sense(known[0], known[1], known[2], group_size)):
        where = tuple(np.argwhere(bad)[0].tolist())
        raise ValueError(
            f"pairs: two different indices in [0, {group_size}) and a finite weight >= 0 make a pair; at {where} there "
            f"are {known[0][where]} preferred to {known[1][where]} with weight {known[2][where]}"
        )
    bad = _makes_no_sense(*pairs, group_size)
    first, second = (jnp.clip(index, 0, group_size - 1) for index in pairs[:2])
    return Pairs(first, second, jnp.where(bad, 0, pairs.weight)), bad


def _makes_no_sense(first, second, weight, group_size):
    inside = (first >= 0) & (first < group_size) & (second >= 0) & (second < group_size)
    return (weight != 0) & ~(inside & (first != second) & (weight > 0) & (weight < np.inf))


def chosen_rejected_pairs(groups: int) -> Pairs:
    """Pairs of an offline data set laid out as `[B,2]`: candidate 0 was chosen, candidate 1 rejected."""
    index = jnp.zeros((groups, 1), jnp.int32)
    return Pairs(index, index + 1, jnp.ones((groups, 1), jnp.float32))


def pairs_from_rewards(
    rewards: jax.Array, *, scheme: str = "matched", margin: float = 0.0, key: jax.Array | None = None
) -> Pairs:
    """Builds preference pairs from the rewards of each group (arXiv 2605.06375, section 3).

    Args:
      rewards: `[B,K]`.
      scheme: "best_worst": one pair. "matched": the i-th best with the i-th worst, each candidate in one pair (even K).
        "all": every two candidates, weight 1/(K-1). "bradley_terry": as "all", with random labels,
        P(i preferred to j) = sigmoid(R_i - R_j). "margin_weighted": as "all", with weight |R_i - R_j| / (K std), the
        population std of the group. Since sum_j (R_i - R_j) = K (R_i - mean), its pair rewards are GRPO's advantages
        for every K (`group_advantages(rewards, eps=0)`), which no binary scheme gives beyond K = 2. A reward that is
        not finite leaves the group: its pairs get weight 0, and the others those of a group without it.
      margin: reward gaps at or below it make no pair (weight 0); 0 drops exact ties only.
      key: PRNG key, needed by "bradley_terry" alone.

    Returns:
      `Pairs` with P = 1, K/2 or K(K-1)/2.

    Raises:
      ValueError: for an unknown scheme, K < 2, odd K with "matched", a negative margin, or a missing key.
    """
    rewards = as_groups("rewards", rewards)
    require_choice("scheme", scheme, PAIR_SCHEMES)
    require_nonnegative(margin=margin)
    if scheme == "best_worst":
        first = jnp.argmax(rewards, axis=-1, keepdims=True)
        second = jnp.argmin(rewards, axis=-1, keepdims=True)
    elif scheme == "matched":
        first, second = _matched(rewards)
    else:
        first, second = _every_two(rewards, scheme, key)
    gap = jnp.abs(jnp.take_along_axis(rewards, first, -1) - jnp.take_along_axis(rewards, second, -1))
    weight = jnp.where(gap > margin, _full_weight(rewards, gap, scheme), 0)
    return Pairs(first.astype(jnp.int32), second.astype(jnp.int32), weight)


def _full_weight(rewards: jax.Array, gap: jax.Array, scheme: str) -> jax.Array:
    size = rewards.shape[-1]
    if scheme == "margin_weighted":
        std, count = _spread(rewards)
        weight = gap / (count * divisor(std))
        return jnp.where(jnp.isfinite(weight), weight, 0)
    full = 1.0 / (size - 1) if scheme in ("all", "bradley_terry") else 1.0
    return jnp.full_like(gap, full)


def _spread(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The population std of the finite rewards of each group, and how many there are, `[B,1]` each."""
    std, finite = partial(jnp.std, rewards, axis=-1, keepdims=True), jnp.isfinite(rewards)
    count = jnp.sum(finite, axis=-1, keepdims=True)
    # Rounded as ever where all are finite: XLA divides otherwise by a count that it does not know.
    return jnp.where(count == rewards.shape[-1], std(), std(where=finite)), count


def _matched(rewards: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = rewards.shape[-1]
    if size % 2:
        raise ValueError(f'scheme="matched" needs an even group size K, got K = {size}; use "all" or another K')
    order = jnp.argsort(-rewards, axis=-1, stable=True)
    return order[:, : size // 2], order[:, ::-1][:, : size // 2]


def _every_two(rewards: jax.Array, scheme: str, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    left, right = (jnp.asarray(index) for index in np.triu_indices(rewards.shape[-1], k=1))
    gap = rewards[:, left] - rewards[:, right]
    if scheme != "bradley_terry":
        left_wins = gap >= 0
    elif key is None or not hasattr(key, "dtype"):
        raise ValueError(f'scheme="bradley_terry" draws random labels: pass key=jax.random.key(seed), got {key!r}')
    else:
        left_wins = jax.random.bernoulli(key, jax.nn.sigmoid(gap))
    return jnp.where(left_wins, left, right), jnp.where(left_wins, right, left)


def scatter_pairs(pairs: Pairs, preferred: jax.Array, rejected: jax.Array, group_size: int) -> jax.Array:
    """Sums per-pair amounts `[B,P]` onto candidates `[B,K]`, `preferred` onto winners and `rejected` onto losers."""
    # An accelerator's atomics would add in any order, and no run would repeat itself bit for bit.
    ways = {"cpu": partial(_add_in_order, group_size), "default": partial(_add_all_at_once, group_size)}
    scatter = jax.vmap(partial(jax.lax.platform_dependent, **ways))
    return scatter(pairs.preferred, pairs.rejected, preferred, rejected)


def _add_in_order(size, first, second, gains, losses):
    how = {"mode": "drop", "wrap_negative_indices": False}  # as below: an index out of range adds nothing
    return jnp.zeros(size, gains.dtype).at[first].add(gains, **how).at[second].add(losses, **how)


def _add_all_at_once(size, first, second, gains, losses):
    index = jnp.arange(size)
    onto_first = jnp.where(first[:, None] == index, gains[:, None], 0)
    return jnp.sum(onto_first + jnp.where(second[:, None] == index, losses[:, None], 0), axis=0)


def pair_rewards(pairs: Pairs, group_size: int) -> jax.Array:
    """The Soft-Pair-GRPO reward of each candidate: the sum of +weight where preferred and -weight where rejected.

    Args:
      pairs: `Pairs`, `[B,P]`.
      group_size: K.

    Returns:
      `[B,K]` rewards, in [-1, 1] for the binary schemes of `pairs_from_rewards`.

    Raises:
      ValueError: for fields that are not `[B,P]`, K < 2, or pairs that make no sense: `usable_pairs`.
    """
    shape = np.shape(pairs.preferred) if isinstance(pairs, Pairs) else ()
    pairs, _ = usable_pairs(pairs, shape[0] if shape else 0, group_size)
    weight = as_float(pairs.weight)
    return scatter_pairs(pairs, weight, -weight, group_size)


def groups_with_pairs(pairs: Pairs) -> jax.Array:
    """Float `[B]`: 1 for a group that holds at least one pair of non-zero weight."""
    return jnp.any(pairs.weight > 0, axis=-1).astype(as_float(pairs.weight).dtype)
