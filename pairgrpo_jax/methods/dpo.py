"""DPO (arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import AtLeast, Within
from pairgrpo_jax.methods.preference import Implicit


@dataclass(frozen=True)
class Dpo(Implicit):
    """DPO (arXiv 2305.18290, eq. 7): `-log sigmoid(beta * margin)`."""

    name: ClassVar[str] = "dpo"
    beta: Annotated[float, AtLeast(0)] = 0.1
    """Inverse temperature of the implicit reward."""
    label_smoothing: Annotated[float, Within(0, 0.5, "[)")] = 0.0
    """Probability that a label is wrong (conservative DPO)."""

    def objective(self, likelihoods, signal, adaptive):
        """The mean over pairs."""
        how = {"beta": self.beta, "label_smoothing": self.label_smoothing}
        return self.terms(core.dpo_loss, likelihoods, signal, **how)
