"""What a run computes on a batch beside its updates, and how arrays come to its devices and back."""

from __future__ import annotations

import functools
from typing import Any

import jax

from pairgrpo_jax.core.surrogate import policy_kl
from pairgrpo_jax.lm.alignment.batch import Batch, filled, groups
from pairgrpo_jax.lm.alignment.config import AlignConfig
from pairgrpo_jax.lm.alignment.parameters import Placement, critic, policy_of
from pairgrpo_jax.lm.alignment.signals import learning_signal
from pairgrpo_jax.lm.models.model import Model
from pairgrpo_jax.lm.models.scoring import Policy, completion_hidden, kept_tokens, score, score_hidden
from pairgrpo_jax.lm.rewards.reward_model import RewardHead, reward, score_and_reward
from pairgrpo_jax.training import TrainState, processes


class Passes:
    """The compiled forward passes of a run, and the learning signal.

    Attributes:
      model: the base, its parameters in place.
      prompts: B.
      places: groups on the devices, B and the empty places after them.
      signal: `learning_signal` of the run's method.
    """

    def __init__(self, config: AlignConfig, model: Model, placement: Placement):
        """Compiles nothing yet."""
        self.config, self.model, self.placement = config, model, placement
        self.prompts, self.places = config.texts.prompts, placement.batch_places(config)
        self.old_scores = jax.jit(self._old_scores)
        self.ref_logp = jax.jit(lambda params, lora, batch: self._score(Policy(model, params, lora), batch))
        self.realised_kl = jax.jit(self._realised_kl)
        self.judge_tokens = jax.jit(self._judge_tokens)
        self.signal = jax.jit(functools.partial(learning_signal, config))

    def put(self, tree: Any) -> Any:
        """Arrays of all groups on the devices, with empty places after them."""
        return self.placement.batch(tree.filled(self.places) if isinstance(tree, Batch) else filled(tree, self.places))

    def fetch(self, tree: Any) -> Any:
        """The arrays of all groups from the devices, without the empty places."""
        return groups(processes.fetch(tree), self.prompts)

    def policy(self, state: TrainState) -> Policy:
        """What is being trained."""
        return policy_of(self.config, self.model, self.model.params, state.params)

    def reference(self, state: TrainState) -> Policy:
        """pi_ref: the base, or what supervised fine-tuning made of it."""
        if "reference" in state.extra:
            return policy_of(self.config, self.model, self.model.params, state.extra["reference"])
        return Policy(self.model, self.model.params)

    @property
    def frozen(self) -> Any:
        """What updates and old scores take beside the trained parameters."""
        return None if self.config.adapters.lora is None else self.model.params

    def _score(self, policy: Policy, batch: Batch) -> jax.Array:
        return score(policy, *batch.tokens, sampling=self.config.scored, kept=batch.kept).logp

    def _old_scores(self, trainable, frozen, batch: Batch) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """pi_old's log-probabilities and the critic's values `[B,K,T]`, from the training graph; and `batch.kept`."""
        policy = policy_of(self.config, self.model, frozen, trainable)
        hidden = completion_hidden(policy, *batch.tokens)
        kept, samples = batch.kept, self.config.samples
        if kept is None and samples is not None and samples.keep_sampling_mask:
            kept = kept_tokens(policy, hidden, batch.completions, samples.transform)
        how = {"sampling": self.config.scored, "kept": kept}
        scores = score_hidden(policy, hidden, batch.completions, batch.lengths, **how)
        return scores.logp, critic(trainable["value"], hidden) if self.config.critic is not None else None, kept

    def _realised_kl(self, trainable, frozen, batch: Batch) -> jax.Array:
        """`approx_kl` of the policy that the updates ended at: k3 of KL(pi_old || pi_theta), nats per token.

        A method's own trust region weighs k2 of KL(pi_theta || pi_old); the two agree to second order in the step.
        """
        logp, *_ = self._old_scores(trainable, frozen, batch)
        return policy_kl((logp - batch.old_logp) * batch.mask, batch.mask)["approx_kl"].mean

    def _judge_tokens(self, params, head: RewardHead, batch: Batch):
        if not self.config.scores_reference:
            return None, reward(Policy(self.model, params), head, *batch.tokens)
        how = {"sampling": self.config.scored, "kept": batch.kept}
        scores, rewards = score_and_reward(Policy(self.model, params), head, *batch.tokens, **how)
        return scores.logp, rewards
