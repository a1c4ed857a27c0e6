"""The settings of an alignment run, and what is wrong with them before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pairgrpo_jax.core.bounds import Above, AtLeast, Settings, Within, require_idle
from pairgrpo_jax.lm.models.lora import LoraConfig
from pairgrpo_jax.lm.models.quantized import Kind
from pairgrpo_jax.lm.models.sampling import Sampling
from pairgrpo_jax.methods import HardPair, Method
from pairgrpo_jax.training.optimizer import Optimizer


@dataclass(frozen=True)
class Texts(Settings):
    """How much a batch holds."""

    prompts: Annotated[int, AtLeast(1)] = 4
    """B: prompts (offline: preference pairs) in a batch."""
    prompt_tokens: Annotated[int, AtLeast(1)] = 64
    """P: longest prompt, in tokens; older turns of a longer one are dropped, or the prompt is left out."""
    completion_tokens: Annotated[int, AtLeast(1)] = 32
    """T: longest completion, in tokens."""


@dataclass(frozen=True)
class Samples(Settings):
    """How completions are drawn."""

    candidates: Annotated[int, AtLeast(2)] = 8
    """K: completions sampled of each prompt."""
    temperature: Annotated[float, Above(0)] = 1.0
    """Of sampling; log-probabilities are those of the distribution at this temperature."""
    top_k: Annotated[int | None, AtLeast(1)] = None
    """Sample from the k most likely tokens. As with top_p, log-probabilities are those before the cut, where none is
    -inf, or by keep_sampling_mask those after it; and pi_old's are taken from the training graph."""
    top_p: Annotated[float | None, Within(0, 1, "(]")] = None
    """Sample from a nucleus of this probability."""
    keep_sampling_mask: bool = False
    """With top_k or top_p: remember which tokens could be drawn at each place (V / 8 bytes a token of a batch); all
    probabilities, pi_ref's too, are then among these (arXiv 2512.02556)."""
    rescore: bool = False
    """Take pi_old's log-probabilities from the training graph, not from the sampler."""
    slots: Annotated[int | None, AtLeast(1)] = None
    """Completions decoded at once, each of which makes room for the next when it ends: worth it where few are long.
    None: a whole batch at once. The texts are the same."""
    trim: bool = False
    """Score and learn from a batch at the length of its longest reply, rounded up to completion_tokens / 2, / 4, ...:
    worth it where replies become short; each length compiles its own update. The same up to float32's rounding."""
    resample: Annotated[int, AtLeast(0)] = 0
    """Further batches of prompts that may be drawn for one, to replace groups that teach nothing: of equal rewards, or
    without a pair (DAPO's dynamic sampling, arXiv 2503.14476). Those that are left have no place in an update, which is
    compiled for B, B / 2, B / 4, ... groups, rounded up; means of rewards' advantages count them all the same."""
    mask_truncated: bool = False
    """Leave replies that were cut off at completion_tokens out of the loss."""
    overlong_buffer: Annotated[int, AtLeast(0)] = 0
    """Tokens before completion_tokens over which a reply's reward falls, in a line, by overlong_penalty; 0: by none
    (arXiv 2503.14476, eq. 13)."""
    overlong_penalty: Annotated[float, Above(0)] = 1.0
    """What a reply of completion_tokens loses, in units of the reward."""

    def __post_init__(self):
        super().__post_init__()
        if not self.cuts:
            require_idle(self, "keep_sampling_mask", "without top_k or top_p")
        else:
            require_idle(self, "rescore", "with top_k or top_p, where pi_old is scored again in any case")
        if not self.overlong_buffer:
            require_idle(self, "overlong_penalty", "with overlong_buffer=0")

    @property
    def cuts(self) -> bool:
        """Whether samples come from a part of the distribution."""
        return self.top_k is not None or self.top_p is not None

    @property
    def transform(self) -> Sampling:
        """Of the distribution that samples come from."""
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def rescores(self) -> bool:
        """Whether pi_old's log-probabilities come from the training graph: the sampler's do not fit a cut one."""
        return self.rescore or self.cuts


@dataclass(frozen=True)
class AlignOptimizer(Optimizer):
    """How a batch is fitted."""

    epochs: Annotated[int, AtLeast(1)] = 2
    """Passes over each batch."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Micro-batches whose exact sum makes one update."""
    warmup: Annotated[int, AtLeast(0)] = 8
    """Updates over which the learning rate rises to it; Adam's first steps are its longest."""


@dataclass(frozen=True)
class Reference(Settings):
    """pi_ref, the model that training starts from, and the penalty towards it."""

    ref_beta: Annotated[float, AtLeast(0)] = 0.0
    """Weight of KL(pi_theta || pi_ref) in the loss; with a critic, of the log-ratio in each token's reward."""
    ref_kl: Literal["k2", "k3"] = "k3"
    """Estimator of that KL: per token k2 has its gradient, k3 (GRPO) the forward KL's; k1 none, see `core.kl`."""
    watch_kl: bool = False
    """Score every batch under pi_ref although nothing learns from it, to log kl_ref and pair_accuracy with each update;
    evaluations tell the KL in any case."""


@dataclass(frozen=True)
class Critic(Settings):
    """The value network of a method that has one."""

    gae_lambda: Annotated[float, Within(0, 1)] = 0.95
    """Lambda of generalised advantage estimation."""
    value_weight: Annotated[float, AtLeast(0)] = 0.5
    """Weight of the squared value error."""


@dataclass(frozen=True)
class Adapters(Settings):
    """What is trained: LoRA adapters, or everything."""

    lora_rank: Annotated[int, AtLeast(0)] = 16
    """Rank of the adapters that are trained; 0 trains all parameters."""
    lora_alpha: Annotated[float, Above(0)] = 32.0
    """Their scale, divided by the rank."""
    lora_dropout: Annotated[float, Within(0, 1, "[)")] = 0.0
    """Dropout of their input while training."""
    lora_targets: tuple[str, ...] = ("q", "k", "v", "o")
    """Linear layers that get one."""
    quantize: Kind = "none"
    """Hold the frozen base, the reference too, as codes (QLoRA): a quarter (q8_0: what a GGUF file of that type holds)
    or a sixth of its float32 bytes. The model that is exported is these codes as numbers, with the adapters merged."""

    def __post_init__(self):
        super().__post_init__()
        for name in () if self.lora_rank else ("quantize", "lora_alpha", "lora_dropout", "lora_targets"):
            require_idle(self, name, "with lora_rank=0, which freezes nothing and has no adapters")
        if "lm_head" in self.lora_targets:
            require_idle(self, "lora_dropout", "on the target lm_head, whose input is not dropped")

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters, or None for full fine-tuning."""
        if not self.lora_rank:
            return None
        return LoraConfig(self.lora_rank, self.lora_alpha, self.lora_dropout, tuple(self.lora_targets))

    @property
    def freezes_vocabulary(self) -> bool:
        """Whether the projection to the vocabulary is not trained."""
        return self.lora is not None and "lm_head" not in self.lora.targets


@dataclass(frozen=True)
class AlignConfig(Settings):
    """A method, and how it is fed and fitted; `tuned(method)` gives each method its own.

    Without `samples` it learns from the pairs of a data set, K = 2; `critic` is there for a method that has one.
    """

    method: Method = field(default_factory=HardPair)
    samples: Samples | None = field(default_factory=Samples)
    texts: Texts = field(default_factory=Texts)
    optimizer: AlignOptimizer = field(default_factory=AlignOptimizer)
    reference: Reference = field(default_factory=Reference)
    critic: Critic | None = None
    adapters: Adapters = field(default_factory=Adapters)
    reference_scores: Literal["shared", "cached"] = "shared"
    """Offline: score pairs under the reference with each batch, or all of them once, beforehand."""
    sft_iterations: Annotated[int, AtLeast(0)] = 0
    """Batches of supervised fine-tuning on chosen replies before all else; the reference is what they give."""

    def __post_init__(self):
        super().__post_init__()
        how, prompts, name = self.optimizer, self.texts.prompts, self.method.name
        if prompts % how.minibatches or prompts // how.minibatches % how.accumulate:
            raise ValueError(
                f"minibatches={how.minibatches} x accumulate={how.accumulate} must divide prompts={prompts}"
            )
        if self.online and not self.method.online:
            raise ValueError(f"samples: {name} learns from a data set's pairs; use samples=None")
        if not (self.online or self.method.offline):
            raise ValueError(f"samples=None: {name} learns from its own samples")
        if self.method.critic != (self.critic is not None):
            raise ValueError(f"critic: {name} {'needs' if self.method.critic else 'has no'} critic")
        if self.method.ratio and self.adapters.lora_dropout:
            raise ValueError(
                f"lora_dropout: {name} learns from the ratio to pi_old, which random masks move before any update; "
                "use 0, or a method without a ratio such as dpo"
            )
        if self.samples is not None and self.samples.overlong_buffer > self.texts.completion_tokens:
            raise ValueError(
                f"overlong_buffer={self.samples.overlong_buffer} must be at most "
                f"completion_tokens={self.texts.completion_tokens}"
            )
        if self.samples is not None and self.samples.trim and getattr(self.method, "aggregate", None) == "constant":
            raise ValueError(
                "trim: aggregate='constant' divides by completion_tokens, which trim changes; leave one out"
            )
        if self.method.critic and self.samples is not None:
            require_idle(self.samples, "resample", f"that {name} could need: its critic learns from every group")
        if self.method.critic or not self.reference.ref_beta:
            require_idle(self.reference, "ref_kl", "without ref_beta, or with a critic, which takes the log-ratio")
        for part in () if self.online else [x for x in ("scheme", "margin") if self.method.has(x)]:
            require_idle(self.method, part, "on a data set's pairs, which are given")
        if self.method.mismatched and prompts < 2:
            raise ValueError(f"prompts={prompts}: {name} learns from replies to other prompts too; use at least 2")
        self.method.check_group(self.group_size)
        if self._learns_from_reference:
            require_idle(self.reference, "watch_kl", "where pi_ref is scored for the loss")
        if self.online:
            require_idle(self, "reference_scores", "on samples, which are scored as they come")
        elif not self.scores_reference:
            require_idle(
                self, "reference_scores", f"with {name}, which learns nothing from pi_ref, but for watch_kl=True"
            )
        if self.reference_scores == "cached" and self.sft_iterations:
            raise ValueError('reference_scores="cached" needs a reference known at the start: sft_iterations=0')

    @property
    def online(self) -> bool:
        """Whether completions are sampled."""
        return self.samples is not None

    @property
    def _learns_from_reference(self) -> bool:
        return self.method.reference or self.reference.ref_beta > 0

    @property
    def scores_reference(self) -> bool:
        """Whether every batch is scored under pi_ref: for the loss, or to be logged."""
        return self._learns_from_reference or self.reference.watch_kl

    @property
    def counts_flat_groups(self) -> bool:
        """Whether means count groups that teach nothing and, with resample, have no place in updates: methods of pairs
        leave out groups without one."""
        return self.samples is not None and self.samples.resample > 0 and not self.method.comparisons

    @property
    def group_size(self) -> int:
        """K of a batch."""
        return 2 if self.samples is None else self.samples.candidates

    @property
    def scored(self) -> Sampling:
        """The transform of the distribution that log-probabilities belong to; offline, the model's own."""
        return Sampling() if self.samples is None else Sampling(self.samples.temperature)
