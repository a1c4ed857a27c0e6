"""The settings of a control run, and what is wrong with them before anything is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from pairgrpo_jax.core.hard import FITS, TRUST_REGIONS
from pairgrpo_jax.core.pairs import PAIR_SCHEMES
from pairgrpo_jax.core.terms import require_at_least, require_choice, require_positive

Algorithm = Literal["ppo", "grpo", "soft", "hard", "rank"]
Advantage = Literal["segment", "reward_to_go", "value"]


@dataclass(frozen=True)
class ControlConfig:
    """How to collect, and what to fit.

    The defaults are those of the tuned main job; `tuned(algo, advantage)` gives each method its own.
    """

    algo: Algorithm = "hard"
    """ppo | grpo | soft (Soft-Pair-GRPO) | hard (Hard-Pair-GRPO) | rank (GRPO on centred mid-ranks)."""
    advantage: Advantage = "value"
    """Source: segment (one return per branch) | reward_to_go (per step) | value (a learned critic, GAE)."""
    groups: int = 16
    """B: groups collected in parallel."""
    candidates: int = 32
    """K: candidates in a group, at least 2 (ppo uses groups x candidates independent environments)."""
    horizon: int = 50
    """H: control steps per branch and iteration."""
    fork: bool = False
    """Fork the K branches of a group from one state; else they are K independent environments (value mode only)."""
    gamma: float = 0.98
    """Discount per control step of 0.05 s."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation (value mode)."""
    epochs: int = 5
    """Passes over each batch."""
    minibatches: int = 32
    """Updates per pass."""
    learning_rate: float = 2.5e-3
    """Adam's step size at the start."""
    anneal: bool = True
    """Decay the learning rate linearly to 0 over the updates of the budget (not counting those target_kl drops)."""
    max_grad_norm: float = 1.0
    """Global gradient-norm clip; inf: none."""
    clip: float = 0.2
    """PPO clip epsilon of the ratio (ppo, grpo, soft, rank)."""
    scheme: Literal["best_worst", "matched", "all", "bradley_terry", "margin_weighted"] = "all"
    """How rewards become pairs (soft, hard)."""
    margin: float = 0.0
    """Reward gaps at or below it make no pair, in units of the advantage source (soft, hard)."""
    beta: float = 0.03
    """Weight of KL(pi_theta || pi_old) (soft), or radius of the trust region in nats (hard)."""
    alpha: float = 2.0
    """Weight of the hinge beyond the trust region (hard)."""
    delta_0: float = 0.03
    """Probability mass moved at the start per pair of weight 1; candidates start at 1/K each. Scheme "all" weighs each
    pair 1/(K-1) (hard)."""
    delta_gamma: float = 1.0
    """Factor of delta per iteration (hard)."""
    fit: Literal["reverse", "forward"] = "reverse"
    """KL(p_theta || q) or KL(q || p_theta) (hard)."""
    trust_region: Literal["hinge", "lagrangian"] = "hinge"
    """Fixed hinge weight, or a learned multiplier (hard)."""
    project_target: bool = False
    """Shrink delta in each group until KL(q || p0) <= beta (hard)."""
    target_kl: float = 0.1
    """Stop an iteration's updates once the minibatch KL(pi_theta || pi_old) exceeds this many nats; 0: never."""
    limit_kl: float = 0.0
    """Cut each update short where its minibatch's KL(pi_theta || pi_old) would exceed this many nats; 0: never."""
    entropy_weight: float = 0.0
    """Weight of the entropy bonus, per nat."""
    value_weight: float = 0.5
    """Weight of the squared value error (value mode)."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the tanh layers of policy and critic."""
    init_log_std: float = -1.0
    """Natural logarithm of the initial standard deviation of actions."""
    min_log_std: float = -5.0
    """Floor of the log standard deviation."""
    squash: bool = False
    """Tanh-squash actions instead of clipping them to [-1, 1]."""

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            require_choice(field, getattr(self, field), choices)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps that one iteration collects, every branch counted."""
        return self.groups * self.candidates * self.horizon

    @property
    def critic(self) -> bool:
        """Whether a value network is trained."""
        return self.advantage == "value"

    @property
    def forks(self) -> bool:
        """Whether branches share their start (PPO's never do)."""
        return self.fork and self.algo != "ppo"

    @property
    def units(self) -> int:
        """Groups in a batch: (time, group) slices, or whole segments."""
        return self.groups if self.advantage == "segment" else self.groups * self.horizon

    def check(self, episode_length: int) -> None:
        """Raises ValueError that names the first bad field and says what would do."""
        require_at_least(self, _AT_LEAST)
        if not 0 <= self.trace <= 1:
            raise ValueError(f"trace must be in [0, 1], got {self.trace}")
        require_positive(max_grad_norm=self.max_grad_norm)
        if not self.init_log_std >= self.min_log_std:
            raise ValueError(f"init_log_std={self.init_log_std} must be >= min_log_std={self.min_log_std}")
        for field in ("gamma", "delta_gamma"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field} must be in (0, 1], got {getattr(self, field)}")
        if episode_length % self.horizon:
            raise ValueError(
                f"horizon={self.horizon} must divide the episode length {episode_length}; try "
                f"{max(h for h in range(1, self.horizon) if episode_length % h == 0)}"
            )
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must hold widths >= 1, got {self.hidden}")
        if self.units % self.minibatches:
            raise ValueError(f"minibatches={self.minibatches} must divide the {self.units} groups of a batch")
        if self.algo in ("soft", "hard") and self.scheme == "matched" and self.candidates % 2:
            raise ValueError(f'candidates={self.candidates} must be even with scheme="matched"')
        if self.trust_region == "lagrangian" and not self.beta > 0:
            raise ValueError(f'beta must be > 0 with trust_region="lagrangian", got {self.beta}')
        if self.algo == "ppo" and not self.critic:
            raise ValueError('advantage must be "value" with algo="ppo", which needs a critic')
        if not self.forks and not self.critic:
            raise ValueError(
                'fork=False goes with advantage="value" alone: without a critic a group must share its start'
            )

    def replace(self, **changes) -> ControlConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_CHOICES = {"algo": get_args(Algorithm), "advantage": get_args(Advantage), "scheme": PAIR_SCHEMES}
_CHOICES |= {"fit": FITS, "trust_region": TRUST_REGIONS}
_AT_LEAST = {
    "groups": 1,
    "candidates": 2,
    "horizon": 1,
    "epochs": 1,
    "minibatches": 1,
    "learning_rate": 0,
    "clip": 0,
    "margin": 0,
    "beta": 0,
    "alpha": 0,
    "delta_0": 0,
    "target_kl": 0,
    "limit_kl": 0,
    "entropy_weight": 0,
    "value_weight": 0,
    "init_log_std": -20,
    "min_log_std": -20,
}
