"""The settings of a control run, and what is wrong with them before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pairgrpo_jax.core.bounds import AtLeast, Settings, Within, require_idle
from pairgrpo_jax.methods import Method
from pairgrpo_jax.training.optimizer import Optimizer

Advantage = Literal["segment", "reward_to_go", "value"]


@dataclass(frozen=True)
class Collection(Settings):
    """How a batch is collected, and by what its candidates are compared."""

    advantage: Advantage = "value"
    """Source: segment (one return per branch) | reward_to_go (per step) | value (a learned critic, GAE)."""
    groups: Annotated[int, AtLeast(1)] = 16
    """B: groups collected in parallel."""
    candidates: Annotated[int, AtLeast(2)] = 32
    """K: candidates in a group."""
    horizon: Annotated[int, AtLeast(1)] = 50
    """H: control steps per branch and iteration."""
    fork: bool = False
    """Fork the K branches of a group from one state; else they are K independent environments (value mode only)."""
    gamma: Annotated[float, Within(0, 1, "(]")] = 0.98
    """Discount per control step of 0.05 s."""
    gae_lambda: Annotated[float, Within(0, 1)] = 0.95
    """Lambda of generalised advantage estimation (value mode)."""

    def __post_init__(self):
        super().__post_init__()
        if not (self.fork or self.critic):
            raise ValueError(
                'fork=False goes with advantage="value" alone: without a critic a group must share its start'
            )
        if not self.critic:
            require_idle(self, "gae_lambda", "without a critic")

    @property
    def critic(self) -> bool:
        """Whether a value network is trained."""
        return self.advantage == "value"

    @property
    def steps(self) -> int:
        """Environment steps that one iteration collects, every branch counted."""
        return self.groups * self.candidates * self.horizon

    @property
    def units(self) -> int:
        """Groups in a batch: (time, group) slices, or whole segments."""
        return self.groups if self.advantage == "segment" else self.groups * self.horizon


@dataclass(frozen=True)
class ControlOptimizer(Optimizer):
    """How a batch is fitted, and where its updates stop."""

    epochs: Annotated[int, AtLeast(1)] = 5
    """Passes over each batch."""
    minibatches: Annotated[int, AtLeast(1)] = 32
    """Updates per pass."""
    learning_rate: Annotated[float, AtLeast(0)] = 2.5e-3
    """Adam's step size at the start."""
    anneal: bool = True
    """Decay the learning rate linearly to 0 over the updates of the budget, those that target_kl drops among them."""
    target_kl: Annotated[float, AtLeast(0)] = 0.1
    """Stop an iteration's updates once the minibatch KL(pi_theta || pi_old) exceeds this many nats; 0: never."""
    limit_kl: Annotated[float, AtLeast(0)] = 0.0
    """Cut the policy's step short where the minibatch KL(pi_theta || pi_old) would exceed this many nats; 0: never."""
    entropy_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the entropy bonus, per nat."""
    value_weight: Annotated[float, AtLeast(0)] = 0.5
    """Weight of the squared value error (value mode)."""

    def __post_init__(self):
        super().__post_init__()
        if self.updates_per_batch == 1 and self.target_kl:
            require_idle(self, "target_kl", "with one update a batch, before which the KL is 0")


@dataclass(frozen=True)
class Network(Settings):
    """The policy, and the critic."""

    hidden: tuple[int, ...] = (128, 128)
    """Widths of the tanh layers of policy and critic."""
    init_log_std: Annotated[float, AtLeast(-20)] = -1.0
    """Natural logarithm of the initial standard deviation of actions."""
    min_log_std: Annotated[float, AtLeast(-20)] = -5.0
    """Floor of the log standard deviation."""
    squash: bool = False
    """Tanh-squash actions instead of clipping them to [-1, 1]."""

    def __post_init__(self):
        super().__post_init__()
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must hold widths >= 1, got {self.hidden}")
        if not self.init_log_std >= self.min_log_std:
            raise ValueError(f"init_log_std={self.init_log_std} must be >= min_log_std={self.min_log_std}")


@dataclass(frozen=True)
class ControlConfig(Settings):
    """A method, and how it is fed and fitted; `tuned(method, advantage)` gives each method its own."""

    method: Method
    collection: Collection = field(default_factory=Collection)
    optimizer: ControlOptimizer = field(default_factory=ControlOptimizer)
    network: Network = field(default_factory=Network)

    def __post_init__(self):
        super().__post_init__()
        units, parts, name = self.collection.units, self.optimizer.minibatches, self.method.name
        if units % parts:
            fits = max(n for n in range(1, parts) if units % n == 0)
            raise ValueError(f"minibatches={parts} must divide the {units} groups of a batch; try {fits}")
        self.method.check_group(self.collection.candidates)
        if not self.method.online:
            raise ValueError(f"method {name} learns from a data set's pairs, and a simulator has none")
        if self.method.critic and not self.collection.critic:
            raise ValueError(f'advantage must be "value" with {name}, which needs a critic')
        if not self.collection.critic:
            require_idle(self.optimizer, "value_weight", "without a critic")
        if self.method.has("aggregate"):
            require_idle(self.method, "aggregate", "here, where all candidates have as many steps")
        if (source := self.collection.advantage) != "segment":
            for name in filter(self.method.has, ("level", "length_normalize")):
                require_idle(self.method, name, f'with advantage="{source}", whose candidates have one step each')

    def check(self, episode_length: int) -> None:
        """Raises ValueError unless the horizon divides an episode."""
        horizon = self.collection.horizon
        if episode_length % horizon:
            made = (self.collection.replace(horizon=h) for h in range(horizon - 1, 0, -1) if episode_length % h == 0)
            fits = next((x.horizon for x in made if x.units % self.optimizer.minibatches == 0), None)
            hint = f"; try {fits}" if fits else ", and no shorter one does with these minibatches"
            raise ValueError(f"horizon={horizon} must divide the episode length {episode_length}{hint}")
