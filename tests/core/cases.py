"""Random batches for the property tests. Few distinct shapes, so that jax compiles each operation few times."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from pairgrpo_jax import pairs_from_rewards

SHAPES = ((3, 2, None), (2, 4, 3))
SCHEMES = ("best_worst", "matched", "all", "bradley_terry")
AGGREGATES = ("sequence_mean", "token_mean", "constant")
LEVELS = ("token", "sequence")
CLIPS = (0.2, 0.05, (0.1, 0.3))


class Case(NamedTuple):
    logp: np.ndarray  # [B,K] or [B,K,T]
    old_logp: np.ndarray
    mask: np.ndarray | None  # like logp, 0/1 floats, possibly with fully masked candidates
    kl: np.ndarray
    rewards: np.ndarray  # [B,K], often with ties, sometimes a whole group of equal rewards
    seed: int

    @property
    def size(self):
        return self.rewards.shape[1]

    def steps(self, x):
        """`[B,K,T]`, what the reference takes; for None, a mask of ones."""
        x = np.ones(self.logp.shape) if x is None else x
        return x[..., None] if x.ndim == 2 else x

    def pairs(self, scheme):
        import jax

        return pairs_from_rewards(jnp.asarray(self.rewards), scheme=scheme, key=jax.random.key(self.seed))


def make(seed=0, shape=(2, 4, 3), masked=True, ties=True, spread=0.4):
    rng = np.random.default_rng(seed)
    full = shape[:2] if shape[2] is None else shape
    old_logp = -rng.exponential(1.0, full)
    mask = None
    if masked:
        lengths = rng.integers(0, (full[2] if len(full) == 3 else 1) + 1, full[:2])
        mask = (np.arange(shape[2] or 1) < lengths[..., None]).astype(float).reshape(full)
    rewards = rng.integers(0, 3, shape[:2]).astype(float) if ties else rng.normal(size=shape[:2])
    logp = old_logp + rng.normal(0, spread, full)
    return Case(logp, old_logp, mask, rng.exponential(0.1, full), rewards, seed)


@st.composite
def cases(draw, shapes=SHAPES):
    return make(
        draw(st.integers(0, 2**16)), draw(st.sampled_from(shapes)), draw(st.booleans()), draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.4, 3.0])),
    )  # fmt: skip
