"""IPO (arXiv 2310.12036)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pairgrpo_jax import core
from pairgrpo_jax.core.bounds import Above
from pairgrpo_jax.methods.preference import Implicit


@dataclass(frozen=True)
class Ipo(Implicit):
    """IPO (arXiv 2310.12036, eq. 17): `(margin - 1 / (2 beta))^2`."""

    name: ClassVar[str] = "ipo"
    beta: Annotated[float, Above(0)] = 0.1
    """Regularisation, the paper's tau: the margin aimed at is 1 / (2 beta) nats."""

    def objective(self, likelihoods, signal, adaptive):
        """The mean over pairs."""
        return self.terms(core.ipo_loss, likelihoods, signal, beta=self.beta)
