"""What a method is: its own settings, what it learns from, and what it minimises; pure functions of arrays."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Settings
from pairgrpo_jax.core.pairs import groups_with_pairs
from pairgrpo_jax.core.terms import divisor, frozen, masked, require_objective


class Verdict(NamedTuple):
    """What is known of B groups of K candidates before the first update on them.

    Attributes:
      scores: `[B,K]` rewards, or advantages (also `[B,K,T]`) that a critic made; None where pairs were judged.
      pairs: `Pairs` `[B,P]` of a judge or a data set, or None.
      alive: `[B]`, 0 for a group without a usable verdict; None: all have one.
      mask: `[B,K,T]`, 1 where a step counts; None: all do.
      mismatched: `Likelihoods` of the next group's candidates after this group's prompts, before any update; or None.
    """

    scores: Any = None
    pairs: Any = None
    alive: Any = None
    mask: Any = None
    mismatched: Any = None

    @property
    def alive_pairs(self) -> core.Pairs:
        """The pairs, of weight 0 in groups that are not alive."""
        if self.alive is None:
            return self.pairs
        return self.pairs._replace(weight=self.pairs.weight * self.alive[:, None])


class Likelihoods(NamedTuple):
    """What the policies say of the candidates in one update.

    Attributes:
      logp: `[B,K,T]` log-probabilities under the policy that is trained.
      old_logp: the same under pi_old, which sampled them.
      ref_logp: the same under pi_ref, or None.
      mask: `[B,K,T]`, 1 where a step counts; None: all do.
      kl: `[B,K,T]` exact KL(pi_theta || pi_old) of every step; None: methods estimate it by k2.
    """

    logp: jax.Array
    old_logp: Any = None
    ref_logp: Any = None
    mask: Any = None
    kl: Any = None

    @property
    def steps(self) -> jax.Array:
        """The mask, with ones where there is none."""
        return jnp.ones_like(self.logp) if self.mask is None else self.mask

    def kl_old(self, counted: jax.Array) -> jax.Array:
        """KL(pi_theta || pi_old) `[B,K,T]`; an estimate reads no group where `counted` `[B]` is 0."""
        if self.kl is not None:
            return self.kl
        return core.kl_k2(self.logp, frozen(self.old_logp), self.steps * counted[:, None, None])

    def sequences(self, logp: jax.Array, mean: bool = False) -> jax.Array:
        """Log-probability of each sequence, `[B,K]`: the sum over its steps, or their mean."""
        total = jnp.sum(masked(logp, self.steps) * self.steps, axis=-1)
        return total / divisor(jnp.sum(self.steps, axis=-1)) if mean else total


class Adaptive(NamedTuple):
    """What a method changes from batch to batch; a part of the train state.

    Attributes:
      batches: int32 scalar, how many batches it has learned from: the t of delta_t.
      multiplier: float32 scalar, the Lagrange multiplier of a trust region.
    """

    batches: jax.Array
    multiplier: jax.Array


class Advantages(NamedTuple):
    """A signal: advantages `[B,K]` or `[B,K,T]`, and `alive [B]` or None."""

    advantages: jax.Array
    alive: jax.Array | None = None

    @property
    def candidate_weight(self) -> jax.Array | None:
        """`alive` for each candidate, `[B,K]`."""
        return None if self.alive is None else jnp.broadcast_to(self.alive[:, None], self.advantages.shape[:2])


class Labels(NamedTuple):
    """A signal: pairs `[B,P]`, Hard's target `[B,K]`, and KTO's reference point `[B]`, the same for all groups."""

    pairs: core.Pairs
    target: jax.Array | None = None
    reference_point: jax.Array | None = None

    @property
    def counted(self) -> jax.Array:
        """`[B]`, 0 for a group without a pair."""
        return groups_with_pairs(self.pairs)


@dataclass(frozen=True)
class Method(Settings, ABC):
    """A method of the family. Frozen, hashable, compared by value; its fields are its own hyper-parameters.

    Raises:
      TypeError: on construction, for a class without a `name`, or with fields and no `@dataclass(frozen=True)`.

    Facts that trainers ask (class attributes):
      name: what the command line calls it.
      online: it can learn from its own samples; offline: from a data set's pairs, chosen before rejected.
      comparisons: it learns from pairs, so that a judge's will do; else it needs scores.
      critic: its advantages come from a value network.
      ratio: it learns through the ratio to pi_old, which must be scored before the first update.
      mismatched: its signal needs the likelihoods of replies to other prompts, and so a batch of two groups or more.
      reference: its loss is made of log-ratios to pi_ref.
      ranks_alone: its implicit reward needs no reference.
      dual: `renewed` needs the KL that the updates on a batch ended at.
    """

    name: ClassVar[str]
    online: ClassVar[bool] = True
    offline: ClassVar[bool] = False
    comparisons: ClassVar[bool] = False
    critic: ClassVar[bool] = False
    ratio: ClassVar[bool] = True
    mismatched: ClassVar[bool] = False
    reference: ClassVar[bool] = False
    ranks_alone: ClassVar[bool] = False

    def __new__(cls, *_, **__):
        """The object, of a class that is declared as a method has to be."""
        if not isinstance(getattr(cls, "name", None), str):
            raise TypeError(f"{cls.__name__} has no name, which config.json keeps: name: ClassVar[str] = ...")
        if inspect.get_annotations(cls) and "__dataclass_fields__" not in vars(cls):
            raise TypeError(f"{cls.__name__}: write @dataclass(frozen=True) above it, or its fields are none")
        return super().__new__(cls)

    @property
    def dual(self) -> bool:
        """No."""
        return False

    @classmethod
    def named(cls, name: str) -> type[Method]:
        """The method that the command line calls `name`; see `methods.method_class`."""
        from pairgrpo_jax import methods

        return methods.method_class(name)

    def check_group(self, size: int) -> None:
        """Raises ValueError if groups of K = `size` candidates do not suit the settings."""

    def apart(self, scores: Any) -> Any:
        """`[B]` bool: groups whose scores `[B,K]` tell candidates apart."""
        return scores.max(-1) > scores.min(-1)

    @abstractmethod
    def signal(self, verdict: Verdict, key: jax.Array, adaptive: Adaptive) -> Any:
        """What the updates on a batch share: a pytree whose leaves begin with B. `key` is for random labels."""

    @abstractmethod
    def objective(self, likelihoods: Likelihoods, signal: Any, adaptive: Adaptive) -> core.Objective:
        """Exact terms of one update; the one that the method improves is called `surrogate`, as in every method's
        curves."""

    def renewed(self, adaptive: Adaptive, kl: jax.Array | None = None) -> Adaptive:
        """For the next batch; `kl` (nats per step) is what the updates ended at, None where none was made.

        Of the cheetah it is the exact KL(pi_theta || pi_old); of language models k3 of KL(pi_old || pi_theta).
        """
        return adaptive._replace(batches=adaptive.batches + 1)

    def implicit_reward(self, likelihoods: Likelihoods) -> jax.Array:
        """What the policy ranks candidates by, `[B,K]`: the margin between two is the one that the loss raises.

        Here the log-ratio of a sequence to the reference (DPO, arXiv 2305.18290, without its beta), its mean over steps
        for a method that has `length_normalize` on.
        """
        ratio = core.kl_k1(likelihoods.logp, likelihoods.ref_logp)
        return likelihoods.sequences(ratio, mean=getattr(self, "length_normalize", False))

    def report(self, adaptive: Adaptive) -> core.Metrics:
        """What of it is worth logging with a batch."""
        return {}


def terms_of(method: Method, likelihoods: Likelihoods, signal: Any, adaptive: Adaptive) -> core.Objective:
    """The method's objective, for trainers to add to; ValueError for a pair, no `Term`, or none with a weight."""
    terms = method.objective(likelihoods, signal, adaptive)
    require_objective(terms)
    return terms
