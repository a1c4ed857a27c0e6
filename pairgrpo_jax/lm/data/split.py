"""Rows told apart by their first user turn, spread, and shuffled; margins of pairs counted."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pairgrpo_jax.core.preference import ranked_right
from pairgrpo_jax.lm.data.messages import Prompt
from pairgrpo_jax.lm.data.rows import Preference, PromptRow


def first_turn(row: Any) -> str:
    """Returns the first user turn of a preference or a prompt."""
    prompt: Prompt = row.prompt if isinstance(row, Preference | PromptRow) else row
    return next(m["content"] for m in prompt if m["role"] == "user")


def split_by_first_turn(rows: Sequence, *, folds: int = 5, fold: int = 0, seed: int = 0) -> tuple[list, list]:
    """Splits preferences or prompts so that no first user turn is on both sides.

    A turn's fold is a hash of its text and the seed: it does not depend on the other rows or their order.

    Returns:
      All rows of other folds, and the rows of this fold.

    Raises:
      ValueError: unless folds >= 2 and 0 <= fold < folds.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise ValueError(f"folds={folds} must be >= 2 and fold={fold} in [0, {folds})")
    inside = [fold_of(first_turn(row), folds, seed) == fold for row in rows]
    return [r for r, x in zip(rows, inside) if not x], [r for r, x in zip(rows, inside) if x]


class Half(NamedTuple):
    """One half of all first turns, whatever the data: those with this `number`, 0 or 1, under `seed`.

    What was fitted on it has seen no row outside, in its own data or any other.
    """

    number: int
    seed: int = 0

    def holds(self, row: Any) -> bool:
        """Whether a preference or a prompt is of this half."""
        return fold_of(first_turn(row), 2, self.seed) == self.number


def unseen(rows: Sequence, half: Half | None) -> list:
    """The rows outside of a half; all of them for None.

    Raises:
      ValueError: if there are none.
    """
    kept = [row for row in rows if half is None or not half.holds(row)]
    if rows and not kept:
        raise ValueError(f"data: all {len(rows)} rows are of the half that the judge was fitted on; use others of both")
    return kept


def spread(rows: Sequence, count: int) -> list:
    """At most `count` rows, in their order, from all over them (the same ones every time): files may be sorted."""
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def fold_of(text: str, folds: int, seed: int) -> int:
    """Returns the fold of a text, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % folds


def batch_indices(count: int, batch: int, position: int, seed: int) -> np.ndarray:
    """Returns the indices `[batch]` of batch number `position` of an endless stream, reshuffled every epoch.

    A pure function: the position, one integer, is all that a checkpoint must hold.

    Raises:
      ValueError: for count or batch < 1, or position < 0.
    """
    if count < 1 or batch < 1 or position < 0:
        raise ValueError(f"count={count} and batch={batch} must be positive, position={position} not negative")
    places = position * batch + np.arange(batch)
    epochs = places // count
    orders = {e: np.random.default_rng([seed, e]).permutation(count) for e in np.unique(epochs).tolist()}
    return np.array([orders[e][i] for e, i in zip(epochs.tolist(), places % count)])


def preference_accuracy(margins: np.ndarray) -> float:
    """Returns the share of pairs ranked as labelled; ties count half."""
    return float(np.mean(ranked_right(margins)))
