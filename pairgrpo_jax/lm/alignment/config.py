"""The settings of an alignment run, and what is wrong with them before anything is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from pairgrpo_jax.core.hard import FITS, TRUST_REGIONS
from pairgrpo_jax.core.pairs import PAIR_SCHEMES
from pairgrpo_jax.core.surrogate import AGGREGATES, LEVELS
from pairgrpo_jax.core.terms import require_at_least, require_choice, require_positive
from pairgrpo_jax.lm.models.lora import LoraConfig
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.lm.models.sampling import check as check_sampling

Algorithm = Literal["grpo", "soft", "hard", "ppo", "rank", "dpo", "ipo", "orpo"]
OFFLINE = ("dpo", "ipo", "orpo")
PAIRED = ("soft", "hard")


@dataclass(frozen=True)
class AlignConfig:
    """How to sample, what to fit, and how far.

    The defaults are those of Hard-Pair-GRPO online; `tuned(algo)` gives each method its own.
    """

    algo: Algorithm = "hard"
    """grpo | soft | hard | ppo | rank sample their completions; dpo | ipo | orpo learn from a preference data set."""
    offline: bool = False
    """Learn from the pairs of a data set in place of samples, K = 2 (soft, hard; dpo, ipo and orpo always do)."""
    prompts: int = 4
    """B: prompts (offline: preference pairs) in a batch."""
    candidates: int = 8
    """K: completions sampled of each prompt."""
    prompt_tokens: int = 64
    """P: longest prompt, in tokens; older turns of a longer one are dropped, or the prompt is left out."""
    completion_tokens: int = 32
    """T: longest completion, in tokens."""
    temperature: float = 1.0
    """Of sampling; log-probabilities are those of the distribution at this temperature."""
    top_k: int | None = None
    """Sample from the k most likely tokens. As with top_p, log-probabilities are those before the cut, where none is
    -inf, and pi_old's are taken from the training graph."""
    top_p: float | None = None
    """Sample from a nucleus of this probability."""
    epochs: int = 2
    """Passes over each batch."""
    minibatches: int = 1
    """Updates per pass."""
    accumulate: int = 1
    """Micro-batches whose exact sum makes one update."""
    learning_rate: float = 1e-3
    """Adam's step size at the start."""
    warmup: int = 8
    """Updates over which the learning rate rises to it; Adam's first steps are its longest."""
    anneal: bool = False
    """Decay the learning rate linearly to 0 over the run."""
    max_grad_norm: float = 1.0
    """Global gradient-norm clip; inf: none."""
    clip: float = 0.2
    """PPO clip epsilon of the ratio (grpo, soft, ppo, rank)."""
    clip_high: float | None = None
    """Epsilon above 1, if it differs (DAPO's clip-higher)."""
    level: Literal["token", "sequence"] = "token"
    """Ratio per token or per sequence (GSPO) (grpo, soft, rank)."""
    aggregate: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """How tokens are averaged (grpo, soft, rank, and the penalty of ref_beta)."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by (grpo)."""
    scheme: Literal["best_worst", "matched", "all", "bradley_terry", "margin_weighted"] = "all"
    """How rewards become pairs (soft, hard)."""
    margin: float = 0.0
    """Reward gaps at or below it make no pair (soft, hard)."""
    beta: float = 0.3
    """Weight of KL(pi_theta || pi_old) (soft), radius in nats (hard), beta (dpo, ipo), or odds-ratio weight (orpo)."""
    alpha: float = 0.5
    """Weight of the hinge beyond the trust region; 0: no trust region (hard)."""
    delta_0: float = 0.12
    """Probability mass moved at the start per pair of weight 1; candidates start at 1/K each. Scheme "all" weighs each
    pair 1/(K-1) (hard)."""
    delta_gamma: float = 0.98
    """Factor of delta per batch (hard)."""
    fit: Literal["reverse", "forward"] = "reverse"
    """KL(p_theta || q) or KL(q || p_theta) (hard)."""
    trust_region: Literal["hinge", "lagrangian"] = "hinge"
    """Fixed hinge weight, or a learned multiplier (hard)."""
    hinge: Literal["candidates", "tokens"] = "candidates"
    """KL of the trust region: of the candidate distribution, or the mean per token (hard)."""
    project_target: bool = False
    """Shrink delta in each group until KL(q || p0) <= beta (hard)."""
    length_normalize: bool = False
    """Mean instead of sum of a sequence's log-ratios (hard, dpo, ipo)."""
    ref_beta: float = 0.0
    """Weight of KL(pi_theta || pi_ref) in the loss; for ppo, of the log-ratio in each token's reward."""
    ref_kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL; see `core.kl`."""
    rescore: bool = False
    """Take pi_old's log-probabilities from the training graph, not from the sampler."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation (ppo)."""
    value_weight: float = 0.5
    """Weight of the squared value error (ppo)."""
    reference: Literal["shared", "cached"] = "shared"
    """Offline: score pairs under the reference with each batch, or all of them once, beforehand."""
    sft_iterations: int = 0
    """Batches of supervised fine-tuning on chosen replies before all else; the reference is what they give."""
    lora_rank: int = 16
    """Rank of the adapters that are trained; 0 trains all parameters."""
    lora_alpha: float = 32.0
    """Their scale, divided by the rank."""
    lora_dropout: float = 0.0
    """Dropout of their input while training."""
    lora_targets: tuple[str, ...] = ("q", "k", "v", "o")
    """Linear layers that get one."""

    @property
    def online(self) -> bool:
        """Whether completions are sampled."""
        return not (self.offline or self.algo in OFFLINE)

    @property
    def group_size(self) -> int:
        """K of a batch."""
        return self.candidates if self.online else 2

    @property
    def scored(self) -> Sampling:
        """The transform of the distribution that log-probabilities belong to; offline, the model's own."""
        return Sampling(self.temperature) if self.online else Sampling()

    @property
    def rescores(self) -> bool:
        """Whether pi_old's log-probabilities come from the training graph: the sampler's do not fit a cut one."""
        return self.rescore or self.cuts

    @property
    def cuts(self) -> bool:
        """Whether samples come from a part of the distribution."""
        return self.top_k is not None or self.top_p is not None

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters, or None for full fine-tuning."""
        if not self.lora_rank:
            return None
        return LoraConfig(self.lora_rank, self.lora_alpha, self.lora_dropout, tuple(self.lora_targets))

    @property
    def updates_per_batch(self) -> int:
        """Optimizer steps on each batch."""
        return self.epochs * self.minibatches

    def replace(self, **changes) -> AlignConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def check(self) -> None:
        """Raises ValueError that names the first bad field and says what would do."""
        for field, choices in _CHOICES.items():
            require_choice(field, getattr(self, field), choices)
        require_at_least(self, _AT_LEAST)
        if not 0 < self.delta_gamma <= 1:
            raise ValueError(f"delta_gamma must be in (0, 1], got {self.delta_gamma}")
        if not 0 <= self.trace <= 1:
            raise ValueError(f"trace must be in [0, 1], got {self.trace}")
        require_positive(max_grad_norm=self.max_grad_norm)
        check_sampling(Sampling(self.temperature, self.top_k, self.top_p))
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0 to sample different completions, got {self.temperature}")
        rows = self.prompts // self.minibatches
        if self.prompts % self.minibatches or rows % self.accumulate:
            raise ValueError(
                f"minibatches={self.minibatches} x accumulate={self.accumulate} must divide prompts={self.prompts}"
            )
        if self.offline and self.algo not in (*PAIRED, *OFFLINE):
            raise ValueError(f"offline goes with {', '.join((*PAIRED, *OFFLINE))}; algo={self.algo!r} needs samples")
        if self.algo in PAIRED and self.scheme == "matched" and self.group_size % 2:
            raise ValueError(f'candidates={self.candidates} must be even with scheme="matched"')
        if self.clip_high is not None and not self.clip_high >= 0:
            raise ValueError(f"clip_high must be >= 0, got {self.clip_high}")
        if self.algo == "ipo" and not self.beta > 0:
            raise ValueError(f'beta must be > 0 with algo="ipo", got {self.beta}')
        if self.trust_region == "lagrangian" and not self.beta > 0:
            raise ValueError(f'beta must be > 0 with trust_region="lagrangian", got {self.beta}')
        if self.reference == "cached" and self.sft_iterations:
            raise ValueError('reference="cached" needs a reference that is known at the start: sft_iterations=0')


_CHOICES = {
    "algo": get_args(Algorithm),
    "level": LEVELS,
    "aggregate": AGGREGATES,
    "scale": ("group", "batch", "none"),
    "scheme": PAIR_SCHEMES,
    "fit": FITS,
    "trust_region": TRUST_REGIONS,
    "hinge": ("candidates", "tokens"),
    "ref_kl": ("k1", "k2", "k3"),
    "reference": ("shared", "cached"),
}
_AT_LEAST: dict[str, float] = {"prompts": 1, "prompt_tokens": 1, "completion_tokens": 1, "epochs": 1, "minibatches": 1}
_AT_LEAST |= {"accumulate": 1, "candidates": 2, "learning_rate": 0, "clip": 0, "margin": 0}
_AT_LEAST |= {"beta": 0, "alpha": 0, "delta_0": 0, "ref_beta": 0, "value_weight": 0, "warmup": 0, "sft_iterations": 0}
_AT_LEAST |= {"lora_rank": 0}
